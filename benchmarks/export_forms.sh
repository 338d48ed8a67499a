#!/usr/bin/env bash
# ONNX exports in all precisions of the real ViT-S, squeezed to 40 %, and of a rotary ViT-S with
# random weights, checked and measured on real pictures: one JSON object a line.
#   bash benchmarks/export_forms.sh benchmarks/results/export-forms.jsonl
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1 cache=~/.cache/tokenpool/real place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
.venv/bin/python - "$place/rotary" "$cache/squeezed-0.4" <<'PYTHON'
import sys
import timm, torch
import tokenpool as tp
torch.manual_seed(0)
model = timm.create_model("vit_small_patch16_dinov3", img_size=224, num_classes=36).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
real = tp.load(sys.argv[2])
model.pretrained_cfg = {**real.pretrained_cfg, "architecture": "vit_small_patch16_dinov3"}
tp.save(tp.pool(model, tp.Schedule.constant_rate(12, 196, 0.93)), sys.argv[1])
PYTHON
for model in "$cache/squeezed-0.4" "$place/rotary"; do
    for precision in fp32 fp16 int8; do
        .venv/bin/tokenpool export "$model" --format onnx --precision "$precision" --json \
            --data "$cache/sets/cliparts" --out "$place/$(basename "$model")-$precision" |
            .venv/bin/python -c '
import datetime, json, sys
import onnxruntime, torch
facts = json.load(sys.stdin)
del facts["classes"]
facts |= {"precision": facts.get("precision", "fp32"), "torch": torch.__version__,
          "onnxruntime": onnxruntime.__version__,
          "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
          "command": "bash benchmarks/export_forms.sh"}
print(json.dumps(facts))' >>"$out"
    done
done
