"""What the converters of export/graph.py read and write, and how a tensor changes between two forms.

Every activation of a traced graph has up to two forms in the converted one:

    plain     [N, C, H, W], [N, T, D] or [N, F], under its own name: what standard operators take
    blocked   kernels/blocked.h, as "<name>/blocked": what our ops take

Whoever asks for the form that a tensor does not have yet gets a Pack or an Unpack before it, once.
Tokens [N, T, D] are maps of D channels and one row of T pixels, so a linear layer on tokens is a 1x1
convolution.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

import onnx
from onnx import NodeProto, helper

from export.composites import DOMAIN
from export.simplify import BATCH
from protocol.errors import ArtifactError
from protocol.layout import DENSE

Shape = tuple[int, int, int]  # channels, height, width
COUNT = "count"  # The number of examples, which the first Pack writes.


@dataclass
class Context:
    """The graph so far."""

    shapes: dict[str, Shape]
    ranks: dict[str, int]
    halos: dict[str, int]
    weights: dict[str, onnx.TensorProto]
    logits: str
    nodes: list[NodeProto] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    momentum: dict[str, float] = field(default_factory=dict)
    forms: set[str] = field(default_factory=set)  # Names of the converted graph.

    def emit(
        self, op_type: str, node: NodeProto, inputs: list[str], outputs: list[str], **attributes: Any
    ) -> None:
        """Add one of our ops in place of `node`."""
        name = node.name.strip("/") or node.output[0]
        self._add(helper.make_node(op_type, inputs, outputs, name=name, domain=DOMAIN, **attributes))

    def keep(self, node: NodeProto) -> None:
        """Add a standard operator as it is. Its weights are trained, but never pruned."""
        kept = NodeProto()
        kept.CopyFrom(node)
        kept.name = node.name.strip("/") or node.output[0]
        for position, name in enumerate(node.input):
            if name in self.weights:
                if self.roles.setdefault(name, DENSE) != DENSE:
                    raise ArtifactError(f"weight {name!r} is used twice; shared weights are not supported")
            elif name in self.shapes:
                kept.input[position] = self.plain(name)
        for position, name in enumerate(node.output):
            if name in self.shapes:
                kept.output[position] = self._plain_name(name)
        self._add(kept)

    def weight(self, node: NodeProto, position: int, role: str) -> str:
        """Name of a weight input; its role is noted. Empty where the node has none."""
        name = node.input[position] if position < len(node.input) else ""
        if not name:
            return ""
        if name not in self.weights:
            raise ArtifactError(f"{node.op_type} {node.name!r}: input {name!r} is computed, not a weight")
        if name in self.roles:
            raise ArtifactError(f"weight {name!r} is used twice; shared weights are not supported")
        self.roles[name] = role
        return name

    def blocked(self, name: str) -> str:
        """Name of the blocked form of an input."""
        form = self.output(name)
        if form not in self.forms:
            is_first = not any(node.op_type == "Pack" for node in self.nodes)
            packed = helper.make_node(
                "Pack",
                [self._plain_name(name)],
                [form, COUNT if is_first else f"{name}/count"],
                "pack" if is_first else f"{name}/pack",
                domain=DOMAIN,
                out_halo=self.halos[name],
                rank=self.ranks[name],
            )
            self._add(packed)
        return form

    def plain(self, name: str) -> str:
        """Name of the plain form of an input."""
        form = self._plain_name(name)
        if form not in self.forms:
            unpacked = helper.make_node(
                "Unpack",
                [self.output(name), COUNT],
                [form],
                "unpack" if name == self.logits else f"{name}/unpack",
                domain=DOMAIN,
                in_halo=self.halos[name],
                rank=self.ranks[name],
            )
            self._add(unpacked)
        return form

    def output(self, name: str) -> str:
        """Name of the blocked form of an output."""
        return f"{name}/blocked"

    def _plain_name(self, name: str) -> str:
        return "scores" if name == self.logits else name  # Temperature makes logits of them.

    def _add(self, node: NodeProto) -> None:
        self.nodes.append(node)
        self.forms.update(node.output)


def activations(graph: onnx.GraphProto) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shape (channels, height, width) and rank of everything that can be blocked.

    That is what has the batch first, and two to four dimensions: [N, F] is (F, 1, 1), and tokens [N, T, D]
    are (D, 1, T).
    """
    shapes: dict[str, Shape] = {}
    ranks: dict[str, int] = {}
    for info in [*graph.input, *graph.value_info, *graph.output]:
        batch, *dims = info.type.tensor_type.shape.dim or [onnx.TensorShapeProto.Dimension()]
        sizes = [d.dim_value for d in dims]
        is_float = info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        if not is_float or batch.dim_param != BATCH or not 1 <= len(sizes) <= 3 or not all(sizes):
            continue
        if len(sizes) == 3:
            shapes[info.name] = (sizes[0], sizes[1], sizes[2])
        else:
            *tokens, features = sizes
            shapes[info.name] = (features, 1, tokens[0] if tokens else 1)
        ranks[info.name] = len(sizes) + 1
    return shapes, ranks


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def refuse(node: NodeProto, what: str) -> NoReturn:
    """Raise ArtifactError for a setting that has no sparsefleet form."""
    raise ArtifactError(f"{node.op_type} {node.name!r}: {what} is not supported")
