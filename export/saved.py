"""The step graph with activations stored smaller from the forward to the backward pass.

Between the two, an activation waits for one or two readers. In the result of `compress`

    the input of a convolution or Gemm    SaveActivation -> RestoreActivation: a bitmap and the values it
                                          names, which loses nothing, or prunes (below)
    a ReLU's output, asked for its sign   SaveSigns -> RestoreSigns: a bitmap
    the input of a batch norm             as it is; at half precision SaveHalf -> RestoreHalf, and the
                                          sides of a ReLU behind it, which would be recomputed from
                                          rounded values, from SaveSigns

An input that the backward pass computes again (BatchNormReluAgain) waits for nobody: it is only
pruned, by PruneActivation. Each of the others is saved behind its last reader of the forward pass and
restored right before its reader in the backward pass; the runtime keeps to that order. At half
precision the named values are halves too.

Pruning: for each layer the graph has two further inputs. Of the copy that waits for the gradient of
<weight>, only the largest `<weight>.keep` (a share, 1 for all) stay, from the magnitude
`<weight>.threshold` on, or from one that is found if that is negative and returned as
`<weight>.threshold_used`. Forward outputs and input gradients do not depend on it. This is
SparsyFed's activation pruning (Guastella et al., 2025, arXiv 2504.05153).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper

from export.graph import DOMAIN

WEIGHT_GRADIENTS = ("SparseConvGrad", "SparseGemmGrad")
# Gradient ops that ask only whether an input is above zero, and which input that is.
SIGN_READERS = {"ReluGrad": 1, "BatchNormAddReluGrad": 6, "BatchNormAddReluSumGrad": 6}
# These find the sides of their ReLU from the input and the bias; the others are told them.
SIDES_FROM_INPUT = {
    "BatchNormReluGrad": "BatchNormAddReluGrad",
    "BatchNormReluSumGrad": "BatchNormAddReluSumGrad",
}
# What ops of the backward pass read that a batch norm has read in the forward pass.
NORM_INPUT = {"BatchNormReluAgain": 0}


def compress(step: onnx.ModelProto, is_half: bool) -> onnx.ModelProto:
    """Return the step graph with saved activations, exact or with values at half precision.

    Raises:
        ValueError: half precision, and the graph has fused maxima: rounded values could have others.
    """
    if is_half and any(node.op_type == "BatchNormReluMaxPool" for node in step.graph.node):
        raise ValueError("fused maxima would be found again from rounded values: fuse without pools")
    made = onnx.ModelProto()
    made.CopyFrom(step)
    saver = _Saver(made, "Half" if is_half else "")
    for i, node in enumerate(step.graph.node):
        if node.op_type in WEIGHT_GRADIENTS:
            saver.save_layer(i)
    for i, node in enumerate(step.graph.node):
        position = SIGN_READERS.get(node.op_type)
        if position is not None and not saver.is_held(node.input[position]):
            saver.save_signs(i, position)
        if is_half and node.op_type.startswith("BatchNorm") and saver.is_backward(i):
            saver.save_halves(i)
    del made.graph.node[:]
    made.graph.node.extend(saver.nodes())
    return made


def unpruned(step: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    """Inputs of a step graph, saved activations or not, for which nothing is pruned."""
    given = {"keep": np.ones((), np.float32), "threshold": np.zeros((), np.float32)}
    names = (tensor.name for tensor in step.graph.input)
    return {name: given[part] for name in names if (part := name.rpartition(".")[2]) in given}


@dataclass
class _Saver:
    """The nodes to be, and what is put behind and before them."""

    model: onnx.ModelProto
    suffix: str
    behind: dict[int, list[NodeProto]] = field(default_factory=lambda: defaultdict(list))
    before: dict[int, list[NodeProto]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.all = list(self.model.graph.node)
        self.writer = {name: node for node in self.all for name in node.output if name}
        self.loss = next(i for i, node in enumerate(self.all) if node.op_type.endswith("Grad"))
        self.forward_reader: dict[str, int] = {}
        self.saved: set[str] = set()
        self.gradients: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for i, node in enumerate(self.all):
            for position, name in enumerate(node.input):
                if self.is_backward(i):
                    self.gradients[name].append((i, position))
                else:
                    self.forward_reader[name] = i

    def nodes(self) -> list[NodeProto]:
        """All nodes in order."""
        return [n for i, node in enumerate(self.all) for n in (*self.before[i], node, *self.behind[i])]

    def is_backward(self, i: int) -> bool:
        """Whether a node belongs to the backward pass."""
        return i >= self.loss

    def is_held(self, name: str) -> bool:
        """Whether some gradient op reads all of a tensor, so that nothing is gained by saving a part."""
        return any(
            self.all[i].op_type not in WEIGHT_GRADIENTS and SIGN_READERS.get(self.all[i].op_type) != position
            for i, position in self.gradients[name]
        )

    def save_layer(self, i: int) -> None:
        node = self.all[i]
        name, weight = node.input[1], node.input[2]
        keep, threshold, used = (f"{weight}.{part}" for part in ("keep", "threshold", "threshold_used"))
        graph = self.model.graph
        graph.input.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, []) for n in (keep, threshold))
        graph.output.append(helper.make_tensor_value_info(used, TensorProto.FLOAT, []))
        if self.is_backward(self.all.index(self.writer[name])):
            pruned = f"{weight}.pruned"
            inputs, halo = [name, "count", keep, threshold], self._halo(name)
            self.before[i].append(
                helper.make_node(
                    "PruneActivation", inputs, [pruned, used], pruned, domain=DOMAIN, in_halo=halo
                )
            )
            node.input[1] = pruned
            return
        stored = [f"{weight}.saved_{part}" for part in ("bits", "begin", "values")]
        self._save("SaveActivation" + self.suffix, name, [name, "count", keep, threshold], [*stored, used])
        self._restore("RestoreActivation" + self.suffix, i, 1, stored)

    def save_signs(self, i: int, position: int) -> None:
        name = self.all[i].input[position]
        self._save("SaveSigns", name, [name, "count"], [name + ".signs"])
        self._restore("RestoreSigns", i, position, [name + ".signs"])

    def save_halves(self, i: int) -> None:
        node = self.all[i]
        position = NORM_INPUT.get(node.op_type, 1)
        name = node.input[position]
        self._save("SaveHalf", name, [name], [name + ".halves"])
        self._restore("RestoreHalf", i, position, [name + ".halves"])
        if node.op_type in SIDES_FROM_INPUT:
            norm = next(n for n in self.all if n.op_type == "BatchNormRelu" and n.input[0] == name)
            node.op_type = SIDES_FROM_INPUT[node.op_type]
            node.input[SIGN_READERS[node.op_type]] = norm.output[0]
            self.save_signs(i, SIGN_READERS[node.op_type])

    def _save(self, op_type: str, name: str, inputs: list[str], outputs: list[str]) -> None:
        """Once, behind the last reader of the forward pass, and behind the writer at the earliest."""
        if outputs[0] in self.saved:
            return
        self.saved.add(outputs[0])
        writer = self.all.index(self.writer[name])
        node = helper.make_node(
            op_type, inputs, outputs, f"{outputs[0]}/save", domain=DOMAIN, in_halo=self._halo(name)
        )
        self.behind[max(writer, self.forward_reader.get(name, writer))].append(node)

    def _restore(self, op_type: str, reader: int, position: int, stored: list[str]) -> None:
        name = self.all[reader].input[position]
        restored = f"{stored[0]}/restored_{reader}"
        node = helper.make_node(
            op_type, stored, [restored], restored, domain=DOMAIN, out_halo=self._halo(name)
        )
        self.before[reader].append(node)
        self.all[reader].input[position] = restored

    def _halo(self, name: str) -> int:
        """The halo with which a tensor was written; vectors have none."""
        node = self.writer[name]
        if node.op_type in ("Relu", "Add"):  # They keep their input's.
            return self._halo(node.input[0])
        return next((int(a.i) for a in node.attribute if a.name == "out_halo"), 0)
