"""A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929); options are named as in timm.

Shapes: B samples, C channels, H x W pixels, N patches (and a class token), D representation width, h x w patches.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

MAX_DEPTH = 1000
"""Maximum number of blocks. A typing error beyond it would take hours to build."""


class ViT(nn.Module):
    """A vision transformer: patches as tokens, transformer blocks, and z from the last tokens. Defaults: ViT-S/16.

    Args:
        image_shape: (C, H, W) of the input.
        patch_size: height and width of a patch.
        embed_dim: D, the width of every token.
        depth: number of blocks, at most `MAX_DEPTH`.
        num_heads: attention heads of each block; divides `embed_dim`.
        mlp_ratio: width of a block's hidden layer, divided by D.
        global_pool: z is the class token ("token"), the average over the patches ("avg"), or all patches as a spatial z
            (None), for dense tasks. There is a class token only with "token".

    Attributes:
        width: D.
        stride: the patch size; only with a spatial z.

    Raises:
        ValueError: the patches do not cover the image, the heads do not divide the width, or the pool is unknown.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        global_pool: str | None = "token",
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        if height % patch_size or width % patch_size:
            raise ValueError(f"patches of {patch_size} x {patch_size} do not cover an image of {height} x {width}")
        if depth > MAX_DEPTH:
            raise ValueError(f"depth is at most {MAX_DEPTH} blocks, found {depth}")
        if embed_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide embed_dim={embed_dim}")
        if global_pool not in ("token", "avg", None):
            raise ValueError(f"global_pool is 'token', 'avg' or null, found '{global_pool}'")
        self.global_pool = global_pool
        self.width = embed_dim
        if global_pool is None:
            self.stride = patch_size
        num_patches = (height // patch_size) * (width // patch_size)
        self.embed = nn.Conv2d(channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.class_token_D = nn.Parameter(torch.zeros(embed_dim)) if global_pool == "token" else None
        self.positions_ND = nn.Parameter(torch.zeros(num_patches + (global_pool == "token"), embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, round(embed_dim * mlp_ratio)) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images to z_BD, or to a spatial z: (B, D, h, w)."""
        patches_BDhw = self.embed(x_BCHW)
        tokens_BND = rearrange(patches_BDhw, "b d h w -> b (h w) d")
        if self.class_token_D is not None:
            class_B1D = repeat(self.class_token_D, "d -> b 1 d", b=len(tokens_BND))
            tokens_BND = torch.cat([class_B1D, tokens_BND], dim=1)
        tokens_BND = tokens_BND + self.positions_ND
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        tokens_BND = self.norm(tokens_BND)
        if self.global_pool == "token":
            return tokens_BND[:, 0]
        if self.global_pool == "avg":
            return tokens_BND.mean(dim=1)
        return rearrange(tokens_BND, "b (h w) d -> b d h w", h=patches_BDhw.shape[2])


class Block(nn.Module):
    """Attention and a multilayer perceptron, each with normalised input and a residual connection.

    Args:
        width: D.
        num_heads: divides D.
        hidden: width of the perceptron's hidden layer.
    """

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map tokens to tokens."""
        x_BND = x_BND + self._attend(self.attention_norm(x_BND))
        x_BND = x_BND + self.mlp(x_BND)
        return x_BND

    def _attend(self, x_BND: Tensor) -> Tensor:
        query, key, value = rearrange(self.qkv(x_BND), "b n (three k d) -> three b k n d", three=3, k=self.num_heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.project(rearrange(mixed, "b k n d -> b n (k d)"))
