"""Names of what lands in the folder of a run."""

from __future__ import annotations

CHECKPOINT = 'ckpt'  # 'ckpt-N' after N updates
CHECKPOINT_LIST = 'checkpoint'  # by which TensorFlow finds the newest one
FLAGS_FILE = 'flags.json'
RESULT_FILE = 'result.json'  # the newest evaluation; result_N.json is the one of step N
DETAILS_FILE = 'details.json'  # results of the newest evaluation that are not single numbers
LABELS_FILE = 'labelled_examples.txt'  # where only some labels are used
SKIPPED_FILE = 'skipped_files.txt'  # image files that can't be decoded
PIPELINE_FILE = 'pipeline.json'  # in a folder of several runs, instead of FLAGS_FILE
REPORT_FILE = 'report.html'
# Folders of exported modules, one a step: of the model, of its momentum encoder.
MODULES, MOMENTUM_MODULES = 'saved_model', 'momentum_saved_model'
