"""Open-loop load for any server that speaks RankService."""
