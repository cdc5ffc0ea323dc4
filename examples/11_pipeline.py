"""A pipeline, end to end: orders come as a file, and go through four actors into a table.

    read_orders   one message for each row of the file
    check         rows that are no orders end as dead letters, whole
    convert       asks for an exchange rate; the bank does not always answer at once
    store         writes the order into the table; handled twice, it writes the same row again

It is what the other examples are, put together. Look at the end: seven rows in, five orders and two dead letters out.
"""

import asyncio
import csv
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from oncue import App, Context, Retry

os.environ["ONCUE_URL"] = "sqlite:///jobs.db"
app = App()

ORDERS = """\
number,customer,amount,currency
1,Ada,10.00,EUR
2,Grace,25.50,USD
3,Edsger,twelve,EUR
4,Barbara,8.20,GBP
5,,3.00,EUR
6,Tony,100.00,USD
7,Donald,2.56,EUR
"""
RATES = {"EUR": 1.0, "USD": 0.9, "GBP": 1.2}


@dataclass
class Order:
    number: int
    customer: str
    amount: float
    currency: str


@app.actor
def read_orders(path: str) -> Iterator[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


@app.actor
async def check(row: dict[str, str], context: Context) -> Order:
    if not row["customer"]:
        context.dead(f"order {row['number']} has no customer")
    try:
        return Order(int(row["number"]), row["customer"], float(row["amount"]), row["currency"])
    except ValueError as error:
        context.dead(f"order {row['number']}: {error}")


@app.actor(timeout=5, retry=Retry(max_attempts=5, base=0.05))
async def convert(order: Order, context: Context) -> Order:
    if order.currency != "EUR" and context.attempt == 1:
        context.retry(after=0.1, reason="the bank is busy")
    return Order(order.number, order.customer, round(order.amount * RATES[order.currency], 2), "EUR")


@app.actor(concurrency=1)  # one after the other, for SQLite has one writer
def store(order: Order) -> None:
    with closing(sqlite3.connect("orders.db")) as table, table:
        table.execute("CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, customer TEXT, euros REAL)")
        table.execute("INSERT OR REPLACE INTO orders VALUES (?, ?, ?)", (order.number, order.customer, order.amount))


async def main() -> None:
    async with app.working():
        await read_orders.send("orders.csv", route=[check, convert, store])
        await until(5)

    with closing(sqlite3.connect("orders.db")) as table:
        for number, customer, euros in table.execute("SELECT * FROM orders ORDER BY number"):
            print(f"{number}  {customer:<8} {euros:6.2f} EUR")


async def until(stored: int) -> None:
    """Wait for so many orders in the table."""
    while True:
        await asyncio.sleep(0.1)
        with closing(sqlite3.connect("orders.db")) as table:
            table.execute("CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, customer TEXT, euros REAL)")
            if table.execute("SELECT count(*) FROM orders").fetchone()[0] == stored:
                return


Path("orders.csv").write_text(ORDERS, encoding="utf-8")
asyncio.run(main())
print("$ oncue dead list check", flush=True)
subprocess.run(["oncue", "dead", "list", "check"], check=True)
