"""The cases of bench_ops.py, one module per kind of op; `harness` checks and times them."""
