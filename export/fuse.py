"""The step graph with fewer passes over memory: neighbouring ops become one.

What remains of a sparse step at low density is reading and writing activations, so

    BatchNormRelu's output            is computed again for the weight gradients that read it
    BatchNorm -> Relu                 becomes  BatchNormRelu          ReluGrad -> BatchNormGrad   alike
    BatchNorm -> Add(skip) -> Relu    becomes  BatchNormAddRelu       ReluGrad -> BatchNormGrad   alike
    BatchNormRelu -> 2x2 MaxPool      becomes  BatchNormReluMaxPool   MaxPoolGrad -> BatchNormReluGrad   alike
    Sum -> BatchNormReluGrad ...      becomes  BatchNormReluSumGrad ...
    a 1x1 SparseConvGrad of stride 2  hands such a sum only the pixels that it met, not the zeros between
    SparseConv -> BatchNorm ...       the tensor between them, which no convolution reads, loses its halo

Only the portable step graph is fused: the gradient builder has no part in it, so ops may have any
number of inputs that carry gradients. The numbers are the same but for rounding (parity checks them).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import onnx
from onnx import NodeProto, helper

from export.graph import DOMAIN

CONVOLUTIONS = ("SparseConv", "SparseConvBias")
SHORTCUT_STRIDE = 2
# The only pooling that is fused with what stands before it.
FUSED_WINDOW = {"kernel_h": 2, "kernel_w": 2, "stride": 2, "pad": 0}
PIXEL_BYTES = 64
PAGE_BYTES = 4096


def fuse(step: onnx.ModelProto, are_pools_fused: bool = True) -> onnx.ModelProto:
    """Return the fused step graph; its inputs and outputs are those of `step`.

    A fused pooling finds its maxima again from what the batch norm read: not for graphs that store that rounded.
    """
    fused = onnx.ModelProto()
    fused.CopyFrom(step)
    graph = _Graph(list(fused.graph.node), {output.name for output in fused.graph.output})
    graph.drop_identities()
    for node in list(graph.nodes):
        if node.op_type == "BatchNorm":
            _fuse_relu(graph, node)
    for node in list(graph.nodes):
        if node.op_type == "BatchNormRelu" and are_pools_fused:
            _fuse_pool(graph, node)
    for node in list(graph.nodes):
        if node.op_type == "Sum":
            _fuse_sum(graph, node)
    for node in list(graph.nodes):
        if node.op_type == "BatchNormRelu":
            _recompute(graph, node)
    for node in graph.nodes:
        if node.op_type in (*CONVOLUTIONS, "SparseConvGrad"):
            _drop_halo(graph, node)
    del fused.graph.node[:]
    fused.graph.node.extend(graph.sorted())
    return fused


@dataclass
class _Graph:
    """The nodes, and who writes and reads each tensor."""

    nodes: list[NodeProto]
    results: set[str]
    writer: dict[str, NodeProto] = field(default_factory=dict)
    readers: dict[str, list[NodeProto]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._index()

    def _index(self) -> None:
        self.writer = {name: node for node in self.nodes for name in node.output if name}
        self.readers = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)

    def only_reader(self, name: str, op_type: str) -> NodeProto | None:
        """The reader of a tensor that has no other and is no result of the graph."""
        readers = self.readers[name]
        if len(readers) == 1 and readers[0].op_type == op_type and name not in self.results:
            return readers[0]
        return None

    def replace(self, gone: list[NodeProto], by: NodeProto) -> None:
        """Put a node in the place of the last of those that go."""
        keys = {id(node) for node in gone}
        last = max(i for i, node in enumerate(self.nodes) if id(node) in keys)
        self.nodes[last] = by
        self.nodes = [node for node in self.nodes if id(node) not in keys]
        self._index()

    def insert(self, node: NodeProto) -> None:
        self.nodes.append(node)
        self._index()

    def drop_identities(self) -> None:
        source: dict[str, str] = {}
        kept = []
        for node in self.nodes:
            node.input[:] = [source.get(name, name) for name in node.input]
            if node.op_type == "Identity" and node.output[0] not in self.results:
                source[node.output[0]] = node.input[0]
            else:
                kept.append(node)
        self.nodes = kept
        self._index()

    def sorted(self) -> list[NodeProto]:
        """Every node behind those it reads from, else in the present order."""
        done: set[int] = set()
        order: list[NodeProto] = []

        def visit(node: NodeProto) -> None:
            stack = [node]
            while stack:
                top = stack[-1]
                before = (self.writer.get(name) for name in top.input)
                missing = [n for n in before if n is not None and id(n) not in done]
                if missing:
                    stack.append(missing[0])
                    continue
                stack.pop()
                if id(top) not in done:
                    done.add(id(top))
                    order.append(top)

        for node in self.nodes:
            visit(node)
        return order


def _made(op_type: str, like: NodeProto, inputs: list[str], outputs: list[str]) -> NodeProto:
    node = helper.make_node(op_type, inputs, outputs, like.name, domain=DOMAIN)
    node.attribute.extend(like.attribute)
    return node


def _fuse_relu(graph: _Graph, norm: NodeProto) -> None:
    """Fuse a batch norm with the ReLU behind it, and what is added in between; forward and backward."""
    add = graph.only_reader(norm.output[0], "Add")
    before = add.output[0] if add else norm.output[0]
    relu = graph.only_reader(before, "Relu")
    if relu is None:
        return
    relu_grad = next((n for n in graph.readers[relu.output[0]] if n.op_type == "ReluGrad"), None)
    norm_grad = next((n for n in graph.readers[norm.output[3]] if n.op_type == "BatchNormGrad"), None)
    if relu_grad is None or norm_grad is None or norm_grad.input[0] != relu_grad.output[0]:
        return
    if add is None and len(graph.readers[relu_grad.output[0]]) > 1:
        return
    forward_inputs, gradient_inputs = list(norm.input), [relu_grad.input[0], *norm_grad.input[1:]]
    gradient_outputs = [*norm_grad.output, *[""] * (3 - len(norm_grad.output))]
    if add is None:
        forward, backward = "BatchNormRelu", "BatchNormReluGrad"
        gradient_inputs.append(norm.input[2])
    else:
        if norm.output[0] == add.input[0] == add.input[1]:
            return
        forward, backward = "BatchNormAddRelu", "BatchNormAddReluGrad"
        forward_inputs.append(add.input[1] if add.input[0] == norm.output[0] else add.input[0])
        gradient_inputs.append(relu.output[0])
        others = [n for n in graph.readers[relu_grad.output[0]] if n is not norm_grad]
        gradient_outputs.append(relu_grad.output[0] if others else "")
    while not gradient_outputs[-1]:
        gradient_outputs.pop()
    outputs = [relu.output[0], *norm.output[1:]]
    graph.replace([n for n in (norm, add, relu) if n], _made(forward, norm, forward_inputs, outputs))
    graph.replace([relu_grad, norm_grad], _made(backward, norm_grad, gradient_inputs, gradient_outputs))


def _fuse_pool(graph: _Graph, norm: NodeProto) -> None:
    """Fuse a batch norm and its ReLU with the 2x2 maxima behind them, if each pixel is in one window; both ways."""
    pool = graph.only_reader(norm.output[0], "MaxPool")
    if pool is None or any(_get(pool, name) != value for name, value in FUSED_WINDOW.items()):
        return
    if _get(pool, "in_height") % 2 or _get(pool, "in_width") % 2:
        return
    pool_grad = graph.only_reader(pool.output[1], "MaxPoolGrad")
    norm_grad = graph.only_reader(pool_grad.output[0], "BatchNormReluGrad") if pool_grad else None
    if pool_grad is None or norm_grad is None:
        return
    forward = _made("BatchNormReluMaxPool", norm, list(norm.input), [pool.output[0], *norm.output[1:]])
    inputs = [pool_grad.input[0], *norm_grad.input[1:]]
    backward = _made("BatchNormReluMaxPoolGrad", norm_grad, inputs, list(norm_grad.output))
    for node in (forward, backward):
        _set(node, "out_halo", _get(pool, "out_halo"))
    graph.replace([norm, pool], forward)
    graph.replace([pool_grad, norm_grad], backward)


def _fuse_sum(graph: _Graph, total: NodeProto) -> None:
    """Let the gradient of a batch norm add the gradients of the two branches that read its output."""
    for op_type in ("BatchNormReluGrad", "BatchNormAddReluGrad"):
        grad = graph.only_reader(total.output[0], op_type)
        if grad is not None and len(total.input) == 2:
            dy, other = sorted(total.input, key=lambda name: _is_shortcut(graph, name))
            fused = _made(
                op_type.replace("Grad", "SumGrad"), grad, [dy, *grad.input[1:], other], list(grad.output)
            )
            if _is_shortcut(graph, other):
                _set(graph.writer[other], "dx_step", SHORTCUT_STRIDE)
                _set(fused, "other_step", SHORTCUT_STRIDE)
            graph.replace([total, grad], fused)


def _is_shortcut(graph: _Graph, name: str) -> bool:
    """Whether a gradient, with one reader, is that of a 1x1 convolution that meets every second row and column."""
    conv = graph.writer.get(name)
    if (
        conv is None
        or conv.op_type != "SparseConvGrad"
        or conv.output[0] != name
        or len(graph.readers[name]) != 1
    ):
        return False
    form = [_get(conv, attribute) for attribute in ("kernel_h", "kernel_w", "pad", "stride")]
    return form == [1, 1, 0, SHORTCUT_STRIDE] and name not in graph.results


def _recompute(graph: _Graph, norm: NodeProto) -> None:
    """Let weight gradients read an output that is computed again, so that nobody stores it.

    The batch norm's gradient reads its input anyway.
    """
    output = norm.output[0]
    grads = [n for n in graph.readers[output] if n.op_type == "SparseConvGrad" and n.input[1] == output]
    if not grads or any(n.op_type.endswith("Grad") and n not in grads for n in graph.readers[output]):
        return
    again = f"{output}/again"
    inputs = [*norm.input[:3], norm.output[1], norm.output[3], norm.input[5], grads[0].input[0]]
    node = _made("BatchNormReluAgain", norm, inputs, [again])
    node.name = f"{norm.name}/again"
    for grad in grads:
        grad.input[1] = again
    graph.insert(node)


def _drop_halo(graph: _Graph, conv: NodeProto) -> None:
    """Leave out the halo of a convolution's result where only batch norms read it: they read the inside.

    The result of forward is stored without halo; its gradient has one all the same (`grad_halo`), for
    the convolution's input gradient. But if a plane without halo took whole pages, the channels of a
    tile would fall into the same sets of the caches: such tensors keep theirs, and so do gradients,
    whose halo is that of their tensor; it is only not cleared.
    """
    readers = graph.readers[conv.output[0]]
    if not conv.output[0] or not all(n.op_type.startswith("BatchNorm") for n in readers):
        return
    _set(conv, "clear_halo", 0)
    if conv.op_type not in CONVOLUTIONS:
        return
    if _get(readers[0], "in_height") * _get(readers[0], "in_width") * PIXEL_BYTES % PAGE_BYTES == 0:
        return
    for node in readers:
        _set(node, "grad_halo", _get(node, "in_halo"))
        _set(node, "in_halo", 0)
    _set(conv, "out_halo", 0)


def _get(node: NodeProto, name: str) -> int:
    return int(next(a for a in node.attribute if a.name == name).i)


def _set(node: NodeProto, name: str, value: int) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
