"""The profiler: what a model does on this machine, with raw samples and conditions.

`run` starts one child process per workload and invocation; `measure` is what happens inside the child.
"""
