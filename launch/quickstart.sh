#!/usr/bin/env bash
# The whole of Liquid at small scale: real images become codes, one model learns text, text-to-image and questions about
# images together, and a report shows what it draws and answers. EXPERIMENT=quickstart_long is the same with more training.
# Every step leaves alone what is already there and current, so a second call takes seconds and a killed one goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # one thread a process: two ranks on two cores must not fight for them

experiment="${EXPERIMENT:-quickstart}"
data=data/quickstart
run="runs/$experiment"

if ! command -v liquid >/dev/null; then
    echo "quickstart: no liquid command on the PATH; run make quickstart, or pip install -c constraints.txt -e '.[demo]' first" >&2
    exit 2
fi

liquid tokenize tokenize.source=easy_vqa tokenize.split=train tokenize.copies=8 tokenize.output=$data/images-train
liquid data filter $data/images-train --where "copy >= 1" --output $data/questions-train # those asked in other words
liquid tokenize tokenize.source=easy_vqa tokenize.split=test tokenize.copies=1 tokenize.output=$data/images-test
liquid tokenize tokenize.source=python_docs tokenize.split=train tokenize.output=$data/text-train
liquid tokenize tokenize.source=python_docs tokenize.split=test tokenize.output=$data/text-test
liquid train "experiment=$experiment"
# asked by parts, as training words it; the published wording of VQAScore means nothing to a model this small
liquid eval "checkpoint=$run" vqascore=easy_vqa
liquid generate "checkpoint=$run" task=t2i prompts=conf/prompt_files/easy_vqa.txt "output=$run/samples/final" seed=0
liquid run report "$run"
