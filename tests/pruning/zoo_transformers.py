"""Transformers architectures with random weights, small enough that each takes about a second. No download."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Build = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]

_TEXT = dict(
    vocab_size=64, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=36,
    max_position_embeddings=32,
)  # fmt: skip
_DECODER = _TEXT | dict(num_key_value_heads=3, head_dim=8)
_VIT = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=36, image_size=32, patch_size=16
)
_SPEECH = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=36, conv_dim=(12, 16),
    conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4, feat_extract_norm="group", mask_time_prob=0.0, vocab_size=12,
)  # fmt: skip


def image(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size)


def tokens(length: int = 8) -> Tensor:
    return torch.randint(3, 64, (2, length))


def audio(length: int = 400) -> Tensor:
    return torch.randn(2, length)


class _Wrapped(nn.Module):
    """Calls a transformers model with one named input and returns one tensor of its output."""

    def __init__(self, model: nn.Module, name: str, result: str, extra: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.name, self.result, self.extra = model, name, result, extra

    def forward(self, x: Tensor) -> Any:
        output = self.model(**{self.name: x}, **self.extra)
        return output[self.result] if self.result in output else output[0]


def _pretrained(
    prefix: str, head: str, config: dict[str, Any], example: Callable[[], Tensor], **extra: Any
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    import transformers

    made = getattr(transformers, f"{prefix}Config")(**config)
    model = getattr(transformers, f"{prefix}{head}")(made)
    x = example()
    name = model.main_input_name
    result = "logits" if head.startswith("For") else "last_hidden_state"
    return _Wrapped(model, name, result, extra), (x,)


def _upernet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    import transformers

    backbone = transformers.ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 12, 16, 20], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, num_labels=5, pool_scales=[1, 2], use_auxiliary_head=False
    )
    return _Wrapped(transformers.UperNetForSemanticSegmentation(config), "pixel_values", "logits", {}), (image(64),)


def _detr() -> tuple[nn.Module, tuple[Tensor, ...]]:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=24,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=36,
        decoder_ffn_dim=36, num_queries=5, num_labels=4,
    )  # fmt: skip
    return _Wrapped(transformers.DetrForObjectDetection(config), "pixel_values", "logits", {}), (image(64),)


def _encoder_of(prefix: str, model: str, config: dict[str, Any], example: Callable[[], Tensor]) -> Any:
    import transformers

    made = getattr(transformers, f"{prefix}Config")(**config)
    whole = getattr(transformers, f"{prefix}{model}")(made)
    encoder = whole.get_encoder()
    return _Wrapped(encoder, encoder.main_input_name, "last_hidden_state", {}), (example(),)


_CLS = "ForImageClassification"
_STAGES = dict(num_stages=2, depths=[1, 1], hidden_sizes=[8, 16])

_ENTRIES: dict[str, tuple[Any, ...]] = {
    # Convolutional
    "hf-resnet": ("ResNet", _CLS, dict(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2]), image),
    "convnext": ("ConvNext", _CLS, _STAGES, image),
    "convnextv2": ("ConvNextV2", _CLS, _STAGES, image),
    "regnet": ("RegNet", _CLS, dict(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2], groups_width=4), image),
    "mobilenet-v1": ("MobileNetV1", _CLS, dict(depth_multiplier=0.25), image),
    "mobilenet-v2": ("MobileNetV2", _CLS, dict(depth_multiplier=0.35), image),
    "efficientnet": ("EfficientNet", _CLS, dict(
        width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, image_size=32), image),
    "bit": ("Bit", _CLS, dict(embedding_size=16, hidden_sizes=[32, 48], depths=[1, 1], num_groups=4), image),
    "poolformer": ("PoolFormer", _CLS, dict(
        hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], num_encoder_blocks=4), image),
    "focalnet": ("FocalNet", _CLS, dict(
        image_size=32, embed_dim=12, depths=[1, 1], focal_levels=[1, 1], focal_windows=[3, 3]), image),
    "hgnet-v2": ("HGNetV2", _CLS, dict(
        stem_channels=[3, 8, 12], stage_in_channels=[12, 16], stage_mid_channels=[6, 8], stage_out_channels=[16, 24],
        stage_num_blocks=[1, 1], stage_downsample=[False, True], stage_light_block=[False, True],
        stage_kernel_size=[3, 5], stage_numb_of_layers=[2, 2], hidden_sizes=[16, 24], depths=[1, 1],
        embedding_size=12), image),
    "textnet": ("TextNet", _CLS, dict(
        stem_out_channels=8, hidden_sizes=[8, 12, 16], conv_layer_kernel_sizes=[[[3, 3]], [[1, 3]]],
        conv_layer_strides=[[1], [2]], depths=[1, 1], image_size=32), image),
    # Hybrid and hierarchical
    "mobilevit": ("MobileViT", _CLS, dict(
        hidden_sizes=[12, 16, 20], neck_hidden_sizes=[4, 8, 12, 16, 16, 20, 24], num_attention_heads=2,
        image_size=64), functools.partial(image, 64)),
    "mobilevit-v2": ("MobileViTV2", _CLS, dict(width_multiplier=0.25, image_size=64), functools.partial(image, 64)),
    "levit": ("Levit", _CLS, dict(
        image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[4, 4, 4],
        ), functools.partial(image, 64)),
    "cvt": ("Cvt", _CLS, dict(
        embed_dim=[8, 16, 24], num_heads=[1, 2, 3], depth=[1, 2, 3], drop_path_rate=[0.0, 0.0, 0.0]), image),
    "swin": ("Swin", _CLS, dict(
        image_size=32, patch_size=4, embed_dim=12, depths=[2, 1], num_heads=[2, 3], window_size=4), image),
    "swin-v2": ("Swinv2", _CLS, dict(
        image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 3], window_size=4), image),
    "pvt": ("Pvt", _CLS, dict(
        image_size=32, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4]), image),
    "pvt-v2": ("PvtV2", _CLS, dict(
        image_size=32, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4]), image),
    "hiera": ("Hiera", _CLS, dict(
        image_size=[32, 32], embed_dim=8, depths=[1, 1], num_heads=[1, 2], masked_unit_size=[4, 4],
        patch_size=[3, 3], patch_stride=[4, 4], patch_padding=[1, 1], num_query_pool=1,
        masked_unit_attention=[True, False]), image),
    # Vision transformers
    "vit": ("ViT", _CLS, _VIT, image),
    "deit": ("DeiT", _CLS, _VIT, image),
    "beit": ("Beit", _CLS, _VIT | dict(use_relative_position_bias=True), image),
    "dinov2": ("Dinov2", _CLS, _VIT | dict(mlp_ratio=2), image),
    "dinov2-swiglu": ("Dinov2", _CLS, _VIT | dict(mlp_ratio=2, use_swiglu_ffn=True), image),
    "dinov3": ("DINOv3ViT", "Model", _VIT, image),
    "vit-msn": ("ViTMSN", _CLS, _VIT, image),
    "ijepa": ("IJepa", _CLS, _VIT, image),
    "clip-vision": ("CLIPVision", "Model", _VIT, image),
    "siglip-vision": ("SiglipVision", "Model", _VIT, image),
    "videomae": ("VideoMAE", "ForVideoClassification", _VIT | dict(num_frames=4, tubelet_size=2),
                 lambda: torch.randn(2, 4, 3, 32, 32)),
    "timesformer": ("Timesformer", "ForVideoClassification", _VIT | dict(num_frames=2),
                    lambda: torch.randn(2, 2, 3, 32, 32)),
    "vivit": ("Vivit", "ForVideoClassification", _VIT | dict(num_frames=4, tubelet_size=[2, 16, 16]),
              lambda: torch.randn(2, 4, 3, 32, 32)),
    # Detection, segmentation, depth
    "yolos": ("Yolos", "ForObjectDetection", _VIT | dict(
        image_size=[32, 32], num_detection_tokens=4, use_mid_position_embeddings=False), image),
    "segformer": ("Segformer", "ForSemanticSegmentation", dict(
        hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16,
        ), functools.partial(image, 64)),
    "glpn": ("GLPN", "ForDepthEstimation", dict(
        hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16,
        ), functools.partial(image, 64)),
    "dpt": ("DPT", "ForDepthEstimation", _VIT | dict(
        num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 12, 16, 20],
        fusion_hidden_size=16, is_hybrid=False), image),
    # Text encoders
    "bert": ("Bert", "ForSequenceClassification", _TEXT, tokens),
    "roberta": ("Roberta", "ForSequenceClassification", _TEXT, tokens),
    "distilbert": ("DistilBert", "ForSequenceClassification", dict(
        vocab_size=64, dim=24, n_layers=2, n_heads=3, hidden_dim=36, max_position_embeddings=32), tokens),
    "albert": ("Albert", "ForSequenceClassification", _TEXT | dict(embedding_size=12), tokens),
    "electra": ("Electra", "ForSequenceClassification", _TEXT | dict(embedding_size=12), tokens),
    "mpnet": ("MPNet", "ForSequenceClassification", _TEXT, tokens),
    "deberta": ("Deberta", "ForSequenceClassification", _TEXT | dict(
        relative_attention=True, pos_att_type=["c2p", "p2c"]), tokens),
    "deberta-v2": ("DebertaV2", "ForSequenceClassification", _TEXT | dict(
        relative_attention=True, pos_att_type=["c2p", "p2c"]), tokens),
    "modernbert": ("ModernBert", "ForSequenceClassification", _TEXT | dict(
        local_attention=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2), tokens),
    "convbert": ("ConvBert", "ForSequenceClassification", _TEXT | dict(embedding_size=12, head_ratio=1), tokens),
    "squeezebert": ("SqueezeBert", "ForSequenceClassification", _TEXT | dict(
        embedding_size=24, q_groups=1, k_groups=1, v_groups=1, post_attention_groups=1, intermediate_groups=2,
        output_groups=2), tokens),
    "mobilebert": ("MobileBert", "ForSequenceClassification", _TEXT | dict(
        embedding_size=12, intra_bottleneck_size=12, true_hidden_size=12), tokens),
    "roformer": ("RoFormer", "ForSequenceClassification", _TEXT | dict(
        hidden_size=24, num_attention_heads=3, embedding_size=12), tokens),
    "fnet": ("FNet", "ForSequenceClassification", dict(
        vocab_size=64, hidden_size=24, num_hidden_layers=2, intermediate_size=36, max_position_embeddings=32), tokens),
    "esm": ("Esm", "ForSequenceClassification", _TEXT | dict(
        pad_token_id=1, mask_token_id=2, position_embedding_type="rotary", token_dropout=False), tokens),
    "megatron-bert": ("MegatronBert", "ForSequenceClassification", _TEXT, tokens),
    # Decoders
    "gpt2": ("GPT2", "Model", dict(vocab_size=64, n_embd=24, n_layer=2, n_head=3, n_positions=32), tokens),
    "gpt-neo": ("GPTNeo", "Model", dict(
        vocab_size=64, hidden_size=24, num_layers=2, num_heads=3, attention_types=[[["global", "local"], 1]],
        intermediate_size=36, max_position_embeddings=32), tokens),
    "gpt-neox": ("GPTNeoX", "Model", _TEXT | dict(rotary_pct=0.5), tokens),
    "opt": ("OPT", "Model", dict(
        vocab_size=64, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, ffn_dim=36,
        max_position_embeddings=32, word_embed_proj_dim=24), tokens),
    "bloom": ("Bloom", "Model", dict(vocab_size=64, hidden_size=24, n_layer=2, n_head=3), tokens),
    "llama": ("Llama", "ForCausalLM", _DECODER, tokens),
    "llama-gqa": ("Llama", "ForCausalLM", _DECODER | dict(num_attention_heads=4, num_key_value_heads=2), tokens),
    "qwen2": ("Qwen2", "ForCausalLM", _DECODER, tokens),
    "qwen3": ("Qwen3", "ForCausalLM", _DECODER, tokens),
    "gemma2": ("Gemma2", "ForCausalLM", _DECODER, tokens),
    "phi3": ("Phi3", "ForCausalLM", _DECODER | dict(pad_token_id=0), tokens),
    "falcon": ("Falcon", "Model", dict(
        vocab_size=64, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, alibi=False), tokens),
    "olmo2": ("Olmo2", "ForCausalLM", _DECODER, tokens),
    "mamba": ("Mamba", "ForCausalLM", dict(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4, expand=2, time_step_rank=4), tokens),
    # Speech and series
    "wav2vec2": ("Wav2Vec2", "ForCTC", _SPEECH, audio),
    "wav2vec2-layer-norm": ("Wav2Vec2", "Model", _SPEECH | dict(
        feat_extract_norm="layer", do_stable_layer_norm=True), audio),
    "hubert": ("Hubert", "ForCTC", _SPEECH, audio),
    "wavlm": ("WavLM", "ForCTC", _SPEECH, audio),
    "data2vec-audio": ("Data2VecAudio", "ForCTC", _SPEECH, audio),
    "ast": ("AST", "ForAudioClassification", _VIT | dict(
        max_length=32, num_mel_bins=16, patch_size=8, frequency_stride=8, time_stride=8),
        lambda: torch.randn(2, 32, 16)),
    "patchtst": ("PatchTST", "ForPrediction", dict(
        num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, d_model=24, num_attention_heads=3,
        num_hidden_layers=1, ffn_dim=36, prediction_length=4, loss="mse"), lambda: torch.randn(2, 32, 3)),
}  # fmt: skip


def _whisper() -> Any:
    config = dict(
        vocab_size=64, num_mel_bins=8, d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=36, decoder_ffn_dim=36, max_source_positions=16,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return _encoder_of("Whisper", "Model", config, lambda: torch.randn(2, 8, 32))


def _t5() -> Any:
    config = dict(vocab_size=64, d_model=24, d_kv=8, d_ff=36, num_layers=2, num_heads=3)
    return _encoder_of("T5", "Model", config, tokens)


def _bart() -> Any:
    config = dict(
        vocab_size=64, d_model=24, encoder_layers=2, decoder_layers=1, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=36, decoder_ffn_dim=36, max_position_embeddings=32,
    )  # fmt: skip
    return _encoder_of("Bart", "Model", config, tokens)


ZOO: dict[str, Build] = {name: functools.partial(_pretrained, *entry) for name, entry in _ENTRIES.items()} | {
    "upernet": _upernet,
    "detr": _detr,
    "whisper-encoder": _whisper,
    "t5-encoder": _t5,
    "bart-encoder": _bart,
}
