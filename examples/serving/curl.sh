#!/bin/sh
# Ask a server with nothing but curl:  ./curl.sh [URL] [MODEL] [INPUT] [SHAPE] [BYTES]
# The default is a grey image of 3 x 224 x 224 floats for efficientnet-lite0.
# The environment may say TYPE, SLO_MS and TOKEN.
set -eu
url=${1:-http://127.0.0.1:8000}
model=${2:-efficientnet-lite0}
input=${3:-images}
shape=${4:-3,224,224}
bytes=${5:-602112}
type=${TYPE:-FP32}
slo_ms=${SLO_MS:-500}

ask() { curl -sS ${TOKEN:+-H "Authorization: Bearer $TOKEN"} "$@"; }

echo "health: $(ask -o /dev/null -w '%{http_code}' "$url/v2/health/ready")"
echo "model:  $(ask "$url/v2/models/$model")"

# A JSON header says what the bytes after it are; its length goes into an HTTP header.
tensor="{\"name\":\"$input\",\"shape\":[1,$shape],\"datatype\":\"$type\",\"parameters\":{\"binary_data_size\":$bytes}}"
header="{\"inputs\":[$tensor]}"
echo "answer, the first of it:"
{ printf '%s' "$header"; head -c "$bytes" /dev/zero; } |
  ask -w '\nstatus %{http_code} after %{time_total} s\n' --data-binary @- \
    -H 'Content-Type: application/octet-stream' \
    -H "Inference-Header-Content-Length: ${#header}" \
    -H "x-slo-ms: $slo_ms" \
    -H "x-sent-at-ms: $(date +%s%3N)" \
    "$url/v2/models/$model/infer" | cut -c 1-300
