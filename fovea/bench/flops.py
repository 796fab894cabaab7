"""Floating-point operations of one GRPO step when every prefix is computed once: the arithmetic floor of `fovea bench step`.

A fused multiply-add counts as two operations. A row's context is a prefix (an image of n merged tokens plus text) that its whole group
shares; a group therefore costs

    S = V(n) + X(P) + G * C(P, T),        P = n + text tokens

per pass, and a step takes four passes: one to sample, one forward and two for the backward of the update. V, X, C are the functions below.
Norms, activations, rotary embeddings, softmax, the optimizer and sampling are left out, so the floor is optimistic on purpose.
The same formula with everything inside the bracket multiplied by G is what a trainer pays that repeats the prefix per sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fovea.policies.world_model import WorldModel

PASSES = 4


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2.5-VL style model.

    Attributes:
      hidden, layers, heads, kv_heads, head_dim, inner, vocab: the language model.
      v_hidden, v_layers, v_full_layers, v_inner: the vision tower; `v_full_layers` attend over the whole image, the others in windows.
      patch_values: numbers in one flattened patch (channels x frames x height x width).
      merge: patches that become one visual token.
      window: patches in one attention window.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    v_hidden: int
    v_layers: int
    v_full_layers: int
    v_inner: int
    patch_values: int = 3 * 2 * 14 * 14
    merge: int = 4
    window: int = 64

    @property
    def linear(self) -> int:
        """Operations of every weight matrix of the decoder layers for one token."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return 2 * self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def pair(self) -> int:
        """Operations of one (query, key) pair in all layers and heads: the score and the weighted value."""
        return 4 * self.layers * self.heads * self.head_dim

    @property
    def head(self) -> int:
        """Operations of the language-model head for one token."""
        return 2 * self.hidden * self.vocab


def vision(s: Shape, n: int) -> float:
    """Forward operations of the tower and the merger for one image of `n` merged tokens."""
    patches = s.merge * n
    linear = patches * 2 * (s.patch_values * s.v_hidden + s.v_layers * (4 * s.v_hidden**2 + 3 * s.v_hidden * s.v_inner))
    context = (s.v_layers - s.v_full_layers) * min(s.window, patches) + s.v_full_layers * patches
    merged = s.merge * s.v_hidden
    return linear + 4 * s.v_hidden * patches * context + n * 2 * (merged**2 + merged * s.hidden)


def prefix(s: Shape, P: int) -> float:
    """Forward operations of the decoder over a causal prefix of `P` tokens."""
    return P * s.linear + s.pair * P * P / 2


def completion(s: Shape, P: int, T: int) -> float:
    """Forward operations of the decoder and the head for `T` new tokens that follow `P` tokens."""
    return T * (s.linear + s.head) + s.pair * (T * P + T * T / 2)


def step(s: Shape, *, tasks: int, group_size: int, image_tokens: int, text_tokens: int, new_tokens: int, shared: bool = True) -> float:
    """Operations of one step over `tasks` groups; with ``shared=False`` the prefix is paid for by every sample."""
    P = image_tokens + text_tokens
    once = vision(s, image_tokens) + prefix(s, P)
    return PASSES * tasks * ((1 if shared else group_size) * once + group_size * completion(s, P, new_tokens))


# -- an update of a world model -------------------------------------------------------------------------------------------------

Product = tuple[int, int, int]
"""(rows, in, out) of a product with a weight."""


def world_model(policy: WorldModel, windows: int, units: int, imagine: int) -> list[tuple[Product, int]]:
    """The products of one update without a decoder (`fovea.methods.repo_mbrl`), and how many passes of each are needed: 1 forward, 1 for
    the gradient of what goes in, 1 for that of the weight.

    What goes into the first layer of encoder, actor and critic has no gradient; what imagination reads of the model has none of weights.
    """
    from fovea.policies.world_model import halved

    D, S, A, E = policy.dynamics.sizes
    N, H, shape = windows * units, imagine - 1, policy.spaces.obs_shape
    planes = [shape[2], *(policy.network.channels << i for i in range(9))]
    seen = [(N * h * w, 16 * planes[i], planes[i + 1]) for i, (h, w) in enumerate(halved(shape)[1:])]
    follow, prior = [(1, S + A, D), (2, D, 3 * D)], [(1, D, D), (1, D, 2 * S)]
    filtered = [*follow, *prior, (1, D + E, D), (1, D, 2 * S)]
    head = [(1, D + S, D), (1, D, D), (1, D, D), (1, D, 1)]
    actor = [(1, D + S, D), (3, D, D), (1, D, 2 * A)]
    out = [(p, 3 - (i == 0)) for i, p in enumerate(seen)]
    out += [((N * n, a, b), 3) for n, a, b in (*filtered, *head)]
    out += [((H * N * n, a, b), 2) for n, a, b in (*follow, *prior)] + [(((H - 1) * N * n, a, b), 2) for n, a, b in head]
    out += [((H * N * n, a, b), 3 - (i == 0)) for i, (n, a, b) in enumerate(actor)]
    # the critic's own loss needs both gradients, the actor's that of what goes in once more
    return out + [((H * N * n, a, b), 4 - (i == 0)) for i, (n, a, b) in enumerate(head)]


def operations(products: list[tuple[Product, int]]) -> float:
    return float(sum(2 * rows * inside * outside * passes for (rows, inside, outside), passes in products))
