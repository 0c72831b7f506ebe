"""PyTorch module -> artifact folder. The only package that imports torch or onnxruntime.training.

models.py     a module                     trace.py      module -> plain ONNX
graph.py      ONNX -> sparsefleet ops      gradients.py  their gradients, registered
artifacts.py  the training artifacts       lower.py      -> a graph that stock onnxruntime runs
parity.py     refuses what differs from PyTorch          export.py  all of it, in order
"""
