"""Names of the files and folders in the folder of a run."""

from __future__ import annotations

CHECKPOINT = 'ckpt'  # 'ckpt-N' after N updates
CHECKPOINT_LIST = 'checkpoint'  # where TensorFlow looks up the newest one
FLAGS_FILE = 'flags.json'
RESULT_FILE = 'result.json'  # the newest evaluation; result_N.json is the one of step N
DATA_FILE = 'data.json'  # what was understood of the data
DETAILS_FILE = 'details.json'  # results of the newest evaluation that are not single numbers
SKIPPED_FILE = 'skipped_files.txt'  # image files that can't be decoded
LABELS_FILE = 'labelled_examples.txt'  # if only some labels are used
PIPELINE_FILE = 'pipeline.json'  # in a folder of several runs, instead of FLAGS_FILE
REPORT_FILE = 'report.html'
# Folders of exported modules, one for each step: of the model, and of its momentum encoder.
MODULES, MOMENTUM_MODULES = 'saved_model', 'momentum_saved_model'
