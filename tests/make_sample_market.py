"""Make the sample market: a hundred invented coins over March 2025, as CoinGecko would have sent them.

  python tests/make_sample_market.py

writes tests/data/2025-03-01T00-00-00Z.json.gz to 2025-03-31T00-00-00Z.json.gz, raw snapshots such as etl_crypto.py
writes. The market rises, falls by a fifth and recovers; the tiers part ways; a coin leaves, one joins. Most coins are
ordinary, and their figures agree from day to day; others show the odd figures that were met in 1,162 recorded answers
of /coins/markets, one or two each. How oddly coins may be called is in ODD_TEXTS of tests/conftest.py, for the tests
alone: this is the market that a user sees first. Every run makes the same: it uses only random() of seeded generators
and plain arithmetic, which no Python version changes.
"""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

DATA_DIR = Path(__file__).resolve().parent / "data"
SEED = 188_000
FIRST_DAY = datetime(2025, 3, 1, tzinfo=UTC)
DAYS = 31
DAYS_BEFORE = 7  # simulated too, for the change over seven days
# How the whole market moved on each day but the first one simulated, in percent: up, a fall of a week, a recovery.
MARKET_MOVES = (0.4, -0.6, 0.9, 0.3, -0.4, 0.8, 0.5, 1.1, -0.3, 1.4, 0.7, -0.5, 1.2, 0.6, -0.2, 0.9, -1.3, -2.8, -4.1)
MARKET_MOVES += (-3.2, 0.9, -5.6, -3.7, -2.4, 1.6, -0.8, 2.7, 1.9, -0.6, 2.4, 1.3, 2.1, -0.4, 1.7, 2.2, -0.7, 1.1)
# What each tier did besides, in percent a day, from the day on which they part ways (0 is the first).
PARTING_DAY = 12
DRIFTS = {"mid": 0.35, "small": -0.45, "micro": 0.9}

# Prices and market caps are those of the last day, and the walk leads up to them: so its tiers are known.
# The largest coins: price (USD) and market cap (billions of USD). The first is half of the market.
LARGE = """alder 87412 1512, larch 3214.6 420, ducat 1 210, hornbeam 2.31 165, hazel 612.4 118, florin 1 98,
    juniper 143.7 92, laurel 0.782 61, lantern 0.2417 47, sycamore 38.15 38, willow 17.92 31, heather 0.0914 25,
    bracken 412.8 20, thistle 6.47 14.5"""
MID = """foxglove bluebell primrose cowslip marigold snowdrop peony dahlia zinnia lupin lavender rosemary thyme sorrel
    fennel thaler dill nutmeg cinnamon cardamom apricot quince damson mulberry walnut bilberry chervil"""
SMALL = """wren robin finch siskin lapwing plover curlew dunlin heron kestrel starling thrush goldcrest otter hedgehog
    dormouse meadow brook glade guilder dale estuary harbour atoll cairn pebble granite basalt slate swallow"""
MICRO = """garnet topaz beryl jasper coral amethyst sundial drizzle pavilion orchard teacup kettle violin mandolin oboe
    clarinet parasol deckchair lighthouse weathervane mote"""
UNKNOWN = "windmill bobbin ribbon cushion candle pillow satchel mitten"
# The others: market cap (USD) of the first, how much of it the next one has and so on, and what prices are like.
TIERS = (
    ("mid", MID, 9.2e9, 0.925, (0.02, 0.3, 1.5, 6.0, 40.0, 200.0)),
    ("small", SMALL, 9.0e8, 0.932, (0.00005, 0.006, 0.08, 0.7, 5.0, 40.0)),
    ("micro", MICRO, 8.4e7, 0.62, (0.0000006, 0.00004, 0.002, 0.03)),
    ("unknown", UNKNOWN, 0.0, 1.0, (0.0004, 0.02, 0.3, 2.0)),
)
STABLE = ("ducat", "florin", "thaler", "guilder")  # kept at 1 USD

# Names: invented, too. None is that of a coin in the recorded answers.
ENDINGS = ("mark", "grid", "pay", "swap", "base", "works", "field", "gate", "line", "mint")
RENAMED_ON = 18  # the day from which one coin is called otherwise
RENAMED = {"bilberry": {"symbol": "myrl", "name": "Myrtleline"}}

# What is odd in how large a coin's own figures are (see Coin).
ODD_SIZES: dict[str, dict[str, Any]] = {
    "mote": {"price": 9.4e-14, "supply": 4.4e16, "total_supply": 4.4e16, "max_supply": None},  # the smallest price
    "chervil": {"price": 2.8e-9, "supply": 4.2e17, "total_supply": 4.2e17, "max_supply": 4.2e17},  # largest supply
    "snowdrop": {"price": 4.12, "supply": 1.44e9, "total_supply": 1.08e9, "max_supply": None},  # more than the total
}

# What is odd in what is sent of a coin. A function makes it from what would have been sent.
CAP_CHANGE = ("market_cap_change_24h", "market_cap_change_percentage_24h")
CHANGE = ("price_change_24h", "price_change_percentage_24h", "price_change_percentage_24h_in_currency", *CAP_CHANGE)
NO_DAY = dict.fromkeys(("high_24h", "low_24h", *CHANGE))
ODD_FIGURES: dict[str, dict[str, Any]] = {
    "bluebell": {"market_cap_rank": None},  # so the rank of every smaller coin is not its position
    "oboe": {"market_cap_rank": 3818},
    "peony": {"high_24h": lambda sent: shown(sent["current_price"] * 0.985)},  # price above the high
    "lupin": {"low_24h": lambda sent: shown(sent["current_price"] * 1.012)},  # price below the low
    "dahlia": {"total_volume": 0.0},
    "violin": {"total_volume": 9.7e-07},
    "beryl": {"total_volume": lambda sent: round(sent["market_cap"] * 2.4)},  # volume above the market cap
    "damson": NO_DAY,
    "quince": {"fully_diluted_valuation": None},
    "walnut": dict.fromkeys(("total_supply", "max_supply", "fully_diluted_valuation")),
    "apricot": {"ath_date": "2024-12-05T11:20:30.456+08:00"},  # an offset
    "zinnia": {"price_change_percentage_1h_in_currency": None},
    "atoll": {"ath_date": "2025-03-16T09:41:07.312Z", "atl_date": "2025-03-16T06:15:44.090Z"},  # new, see ABSENT
    "satchel": dict.fromkeys(("market_cap", "fully_diluted_valuation", *CAP_CHANGE)),  # null, where the others have 0
    "mitten": dict.fromkeys(("market_cap", *CAP_CHANGE)),
}
JUMPS = {"harbour": (9, 3.4)}  # day, and by what the price was multiplied: a move of more than 3x
STALE_AFTER = {"topaz": 18}  # the day with the last news: its last_updated is 12 days old in the end
ABSENT = {"granite": range(24, 31), "cairn": range(5, 6), "atoll": range(16)}  # left, forgotten once, joined on a day


class Coin(NamedTuple):
    """An invented coin as it is on the last day. Price in USD."""

    number: int
    word: str
    tier: str
    price: float
    supply: float  # circulating; 0 when it is not known, and so the market cap is 0
    growth: float  # of the supply, in a day
    total_supply: float
    max_supply: float | None
    volatility: float  # deviation of a day's move


def bell(rng: Random) -> float:
    """About normal, mean 0 and deviation 1, without the logarithms whose last digit differs between systems."""
    return (rng.random() + rng.random() + rng.random() - 1.5) * 2


def digits(figure: float, count: int) -> float:
    """`figure` with `count` significant digits."""
    return float(f"{figure:.{count}g}")


def shown(figure: float) -> float:
    """A price, cap or volume with the digits that CoinGecko sends: from 10,000 a whole number, below 1 six digits."""
    if figure >= 10_000 or not figure:
        return round(figure)
    return round(figure, 2 if figure >= 1.1 else 3) if figure >= 1 else digits(figure, 6)


def to_text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def make_coin(number: int, word: str, tier: str, price: float, market_cap: float, rng: Random) -> Coin:
    supply = digits(market_cap / price, 13)
    issued = supply or digits(5e6 * (1 + rng.random()) / price, 9)
    total = issued if rng.random() < 0.5 else digits(issued * (1 + rng.random()), 13)
    maximum = None if rng.random() < 0.48 else digits(total * 1.1, 2)
    # The odd ones move little: users see the lists of gainers and losers first.
    odd = word in (*UNKNOWN.split(), *ODD_FIGURES, *ODD_SIZES, *STALE_AFTER) and word != "atoll"
    wild = rng.random() * (0.015 if market_cap >= 10e9 else 0.06)
    volatility = 0.0004 if word in STABLE else 0.008 if odd else 0.01 + wild
    coin = Coin(number, word, tier, price, supply, 0.0002 * rng.random(), total, maximum, volatility)
    return coin._replace(**ODD_SIZES.get(word, {}))


def make_coins() -> list[tuple[Coin, Random]]:
    """Every coin, largest first, each with a generator of its own: to change one leaves the others as they are."""
    coins = []
    for number, line in enumerate(LARGE.split(","), 1):
        word, price, billions = line.split()
        rng = Random(SEED + number)
        coins.append((make_coin(number, word, "large", float(price), float(billions) * 1e9, rng), rng))
    for tier, words, market_cap, ratio, prices in TIERS:
        for number, word in enumerate(words.split(), len(coins) + 1):
            rng = Random(SEED + number)
            price = digits(prices[int(rng.random() * len(prices))] * (1 + 2 * rng.random()), 6)
            cap = market_cap * (0.96 + 0.08 * rng.random())
            coins.append((make_coin(number, word, tier, 1.0 if word in STABLE else price, cap, rng), rng))
            market_cap *= ratio
    return coins


def make_prices(coin: Coin, rng: Random) -> list[float]:
    """The price (USD) on each day, those before the first snapshot included: a random walk to the coin's own price."""
    if coin.word in STABLE:
        return [1 + coin.volatility * bell(rng) for _ in range(DAYS_BEFORE + DAYS)]
    share = 0.6 + 0.8 * rng.random()  # that it takes in the market's moves
    jump_day, jump = JUMPS.get(coin.word, (None, 1.0))
    prices = [coin.price]
    for day in reversed(range(1 - DAYS_BEFORE, DAYS)):
        drift = DRIFTS.get(coin.tier, 0) if day >= PARTING_DAY else 0
        move = (share * MARKET_MOVES[day + DAYS_BEFORE - 1] + drift) / 100 + coin.volatility * bell(rng)
        prices.append(prices[-1] / ((1 + move) * (jump if day == jump_day else 1)))
    return prices[::-1]


def make_answers(coin: Coin, rng: Random) -> list[dict[str, Any] | None]:
    """What CoinGecko says of `coin` on each day of the month, without its rank; None where it says nothing."""
    prices = make_prices(coin, rng)
    supplies = [coin.supply * (1 - coin.growth * days) for days in reversed(range(DAYS_BEFORE + DAYS))]
    ath, atl = max(prices) * (1.05 + 3 * rng.random()), min(prices) * (0.03 + 0.9 * rng.random())
    if coin.word in STABLE:
        ath, atl = 1.02 + 0.1 * rng.random(), 0.9 + 0.09 * rng.random()
    ath_date, atl_date = (datetime(2018, 1, 1, tzinfo=UTC) + timedelta(2500 * rng.random()) for _ in range(2))
    sold_at = coin.price / (0.2 + 40 * rng.random() * rng.random()) if rng.random() < 0.12 else None
    turnover = 0.35 if coin.word in STABLE else 0.01 + 0.07 * rng.random()
    absent = ABSENT.get(coin.word, range(0))
    ending = ENDINGS[coin.number % len(ENDINGS)]
    name, symbol = f"{coin.word.title()}{ending}", f"{coin.word[:3]}{ending[0]}"
    if coin.word in STABLE:
        name, symbol = f"{coin.word.title()} Dollar", f"{coin.word[:3]}d"
    answers: list[dict[str, Any]] = []
    for day in range(DAYS):
        today = day + DAYS_BEFORE
        price, before, supply = prices[today], prices[today - 1], supplies[today]
        cap, cap_before = price * supply, before * supplies[today - 1]
        change, cap_change = price - before, cap - cap_before
        percent, cap_percent = change / before * 100, cap_change / cap_before * 100 if cap_before else 0.0
        volume = (cap or price * coin.total_supply) * turnover * (0.7 + 0.6 * rng.random()) * (1 + abs(percent) / 20)
        total = supply if coin.total_supply == coin.supply else coin.total_supply
        times = price / sold_at - 1 if sold_at else None
        sent: dict[str, Any] = {
            "id": f"sample-{coin.word}",
            "symbol": symbol,
            "name": name,
            "image": f"https://example.com/coins/images/{coin.number}/large/sample.png?{1735689600 + coin.number}",
            "current_price": shown(price),
            "market_cap": shown(cap),
            "market_cap_rank": 0 if coin.supply else None,  # 0 until the whole list is there
            "fully_diluted_valuation": shown(price * (coin.max_supply or total)),
            "total_volume": shown(volume),
            "high_24h": shown(max(price, before) * (1 + coin.volatility * rng.random())),
            "low_24h": shown(min(price, before) * (1 - coin.volatility * rng.random())),
            "price_change_24h": change if change < 0 else digits(change, 6),  # CoinGecko cuts gains, not losses
            "price_change_percentage_24h": round(percent, 5),
            "market_cap_change_24h": cap_change if cap_change < 0 else round(cap_change),
            "market_cap_change_percentage_24h": round(cap_percent, 5),
            "circulating_supply": supply,
            "total_supply": total,
            "max_supply": coin.max_supply,
            "ath": shown(ath),
            "ath_change_percentage": round((price / ath - 1) * 100, 5),
            "ath_date": to_text(ath_date),
            "atl": shown(atl),
            "atl_change_percentage": round((price / atl - 1) * 100, 5),
            "atl_date": to_text(atl_date),
            "roi": times and {"times": times, "currency": "usd", "percentage": times * 100},
            "last_updated": to_text(FIRST_DAY + timedelta(day, -3 - 55 * rng.random())),
            "price_change_percentage_1h_in_currency": coin.volatility * bell(rng) * 20,
            "price_change_percentage_24h_in_currency": percent,
            "price_change_percentage_7d_in_currency": (price / prices[today - 7] - 1) * 100,
        }
        odd = dict(ODD_FIGURES.get(coin.word, {}))
        if day >= RENAMED_ON:
            odd |= RENAMED.get(coin.word, {})
        if 0 in absent:  # a new coin has no past
            odd |= {"price_change_percentage_7d_in_currency": None} | (NO_DAY if day - 1 in absent else {})
        sent |= {field: value(sent) if callable(value) else value for field, value in odd.items()}
        answers.append(answers[-1] | NO_DAY if day > STALE_AFTER.get(coin.word, DAYS) else sent)
    return [None if day in absent else sent for day, sent in enumerate(answers)]


def make_snapshots() -> list[dict[str, Any]]:
    """The snapshots, oldest first, each with its "timestamp" and its "coins", by market cap as the API sorts them."""
    answers = [make_answers(coin, rng) for coin, rng in make_coins()]
    snapshots = []
    for day, row in enumerate(zip(*answers, strict=True)):
        coins = sorted((sent for sent in row if sent), key=lambda sent: -(sent["market_cap"] or 0))
        rank = 0
        for sent in coins:
            if sent["market_cap_rank"] == 0:
                sent["market_cap_rank"] = rank = rank + 1
        snapshots.append({"timestamp": f"{FIRST_DAY + timedelta(day):%Y-%m-%dT%H:%M:%SZ}", "coins": coins})
    return snapshots


def main() -> int:
    DATA_DIR.mkdir(exist_ok=True)
    for snapshot in make_snapshots():
        text = json.dumps(snapshot, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        path = DATA_DIR / f"{snapshot['timestamp'].replace(':', '-')}.json.gz"
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
        print(f"{path.name}: {len(snapshot['coins'])} coins, {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
