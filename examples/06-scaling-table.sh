#!/usr/bin/env bash
# A scaling table: tokens per second of one model on 1, 2 and 4 data-parallel ranks, with the same work for each rank.
# Efficiency is the rate divided by the rate of one rank times the ranks. Ranks that share a core share its rate.
#
#   examples/06-scaling-table.sh [FOLDER]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

number() { sed "s/.*\"$1\":\([^,}]*\).*/\1/" "$2"; }
printf '%5s %12s %12s %12s\n' ranks tokens/s efficiency exposed
for count in 1 2 4; do
  ranks "$count" bench step --steps 3 --sequence-length 128 --micro-batch 4 --global-batch $((4 * count)) \
    --set model.layers=2 --set model.hidden=128 --set model.heads=4 --set model.glu=352 --json >"$count.json" 2>"$count.log"
  rate=$(number tokens_per_second "$count.json")
  [ "$count" != 1 ] || one=$rate
  awk -v count="$count" -v rate="$rate" -v one="$one" -v exposed="$(number exposed_communication_seconds "$count.json")" \
    'BEGIN { printf "%5d %12.0f %10.0f %% %9.2f ms\n", count, rate, 100 * rate / one / count, 1e3 * exposed; exit !(rate > 0) }'
done
