"""From a source's row to a sample: cropped, encoded, cut."""
