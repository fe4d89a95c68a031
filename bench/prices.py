"""From what was used to money, by a table of prices that the user gives. Applied when costs are shown, never stored.

currency = "EUR"            # before the first table
[accelerator]
"NVIDIA H100" = 2.50        # an hour of one; names may be cut short at the end of a word
[cpu]
core_hour = 0.04            # for work without an accelerator
[energy]
kwh = 0.30
[tokens."gpt-5-mini"]       # a model as the run names it: its calls cost this and nothing else
input = 0.25                # a million tokens
output = 2.0
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bench.config import Config, build
from bench.costs import Cost, paid, total
from bench.errors import UsageError
from bench.files import read_toml
from bench.stored import StoredRun

Price = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]

JOULES_PER_KWH = 3.6e6


class CpuPrices(Config):
    """Prices of processors."""

    core_hour: Price
    """One usable core for an hour."""


class EnergyPrices(Config):
    """Prices of electricity."""

    kwh: Price


class TokenPrices(Config):
    """Prices of a million tokens of a model."""

    input: Price
    output: Price


class Prices(Config):
    """What things cost, all in one currency."""

    currency: str = Field(min_length=1, max_length=12, pattern=r"^[^\s\W\d_]+$|^\W$")
    accelerator: Mapping[str, Price] = {}
    """Device name, or its beginning -> one for an hour."""
    cpu: CpuPrices | None = None
    energy: EnergyPrices | None = None
    tokens: Mapping[str, TokenPrices] = {}
    """Model -> price."""

    def money(self, cost: Cost, model: str | None) -> float | str:
        """What a stage costs, `model` answering its calls; for what has no price or is unknown, a word on it.

        Hours cost where hours of any kind have a price; where none have, electricity alone is paid.
        """
        if cost.accelerator_seconds == 0 and cost.core_seconds == 0 and not cost.calls:
            return 0.0  # a service's, which is paid by the token
        if cost.calls and model is not None and model in self.tokens:
            price = self.tokens[model]
            return (cost.prompt_tokens * price.input + cost.output_tokens * price.output) / 1e6
        parts = [self._hours(cost)] if self.accelerator or self.cpu or not self.energy else []
        parts += [self._energy(cost)] if self.energy else []
        if cost.accelerator_seconds == 0 and cost.core_seconds == 0:
            parts = [f"tokens of {model}"]
        unknown = [part for part in parts if isinstance(part, str)]
        return unknown[0] if unknown else sum(part for part in parts if not isinstance(part, str))

    def _hours(self, cost: Cost) -> float | str:
        if cost.accelerator_seconds is None or cost.core_seconds is None:
            return "work whose devices were not recorded"
        accelerator, core = self.of_device(cost.device), self.cpu.core_hour if self.cpu else None
        if cost.accelerator_seconds and accelerator is None:
            return f"hours of {cost.device or 'an unknown accelerator'}"
        if cost.core_seconds and core is None:
            return "hours of processor cores"
        return (cost.accelerator_seconds * (accelerator or 0.0) + cost.core_seconds * (core or 0.0)) / 3600

    def _energy(self, cost: Cost) -> float | str:
        if cost.energy_joules is None or self.energy is None:
            return "energy that was not measured"
        return cost.energy_joules / JOULES_PER_KWH * self.energy.kwh

    def of_device(self, device: str | None) -> float | None:
        """The price of the longest name that the device's begins with, at the end of a word; None without one."""
        name = (device or "").casefold()
        fitting = [key for key in self.accelerator if _begins(name, key.casefold())]
        return self.accelerator[max(fitting, key=len)] if fitting else None


def _begins(name: str, key: str) -> bool:
    return bool(key) and name.startswith(key) and not name[len(key) : len(key) + 1].isalnum()


def read_prices(path: Path) -> Prices:
    """A file of prices. Raises DataError if it cannot be read, UsageError or UnknownName for what is in it."""
    table = read_toml(path)
    if "currency" not in table:
        raise UsageError(f'{path} names no currency; put a line such as currency = "EUR" before its first table')
    prices = build(Prices, table, str(path))
    if not (prices.accelerator or prices.cpu or prices.energy or prices.tokens):
        raise UsageError(f"{path} holds no price; give one in [accelerator], [cpu], [energy] or [tokens.MODEL]")
    return prices


def money(costs: Sequence[Cost], run: StoredRun, prices: Prices) -> tuple[float | None, set[str]]:
    """What costs of a run come to, None if any has no price; and what has none."""
    model = run.description["engine"].get("model")
    told = [prices.money(cost, None if model is None else str(model)) for cost in costs]
    unknown = {one for one in told if isinstance(one, str)}
    return (None if unknown else math.fsum(one for one in told if not isinstance(one, str))), unknown


def amount(value: float) -> str:
    """0, 1.2e-05, 0.00012, 0.123, 1.23, 12.3, 1234."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    digits = 2 if abs(value) < 0.1 else 3
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def bill(run: StoredRun, prices: Prices | None) -> list[str]:
    """What a run cost in a few words, as far as it is known; nothing of it is told without a price."""
    costs = paid(run)
    hours, joules = total(costs, "accelerator_seconds"), total(costs, "energy_joules")
    told = [f"{amount(hours / 3600)} GPU-hours"] if hours else []
    told += [f"{amount(joules / 3600)} Wh"] if joules else []
    if prices is not None and costs:
        known, unknown = money(costs, run, prices)
        lacking = ", ".join(sorted(unknown))
        told.append(f"no price of {lacking}" if known is None else f"{amount(known)} {prices.currency}")
    return told
