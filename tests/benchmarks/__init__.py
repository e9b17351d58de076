"""Ratios against other libraries and the plain way; run each with ``python -m tests.benchmarks.NAME``.

Two threads unless the user says otherwise, and threads that wait idle, as in the command: on a busy machine,
threads that spin would be what is measured. torch reads both when it is first imported, so they stand here.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
