"""DeepRecSys as a client sees it: the generated messages, the client and its errors."""

from deeprecsys.client import AsyncRankClient, RankClient, Ranking

__all__ = ["AsyncRankClient", "RankClient", "Ranking"]
