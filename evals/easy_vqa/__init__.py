"""The quickstart's data set: captions, and a judge of shapes and colours."""
