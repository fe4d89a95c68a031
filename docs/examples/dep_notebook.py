"""Two users, one item, one DEP: what each of them would write of it.

Train one and export it first, then run this (or paste it into a notebook, cell by cell):

    python -m bench run --methods dep
    python -m bench export results/runs/planted/dep/KEY my-dep
    python docs/examples/dep_notebook.py my-dep
"""

# %% Load what was exported. Language model and encoder are found by the names in its config.json.
import sys

import methods.dep

folder = sys.argv[1] if len(sys.argv) > 1 else "my-dep"
writer = methods.dep.load(folder)

# %% What two users wrote before, the oldest first. A pandas DataFrame with these columns does as well.
anna = [
    {
        "item_title": "Pellam Relay Wireless Headset",
        "item_description": "A headset with memory foam cushions and steel hinges.",
        "rating": 2.0,
        "title": "Cracked already",
        "text": "Broke. Two months, one small drop, and the left hinge was gone. Do not buy this if you own a floor.",
    },
    {
        "item_title": "Kettleby 12 Coffee Maker",
        "item_description": "A coffee maker with a timer and an automatic rinse cycle.",
        "rating": 4.0,
        "title": "Does its job",
        "text": "Hot coffee at seven. That is all I ask. The rinse is loud. I sleep next door. Still, four stars.",
    },
]
ben = [
    {
        "item_title": "Pellam Relay Wireless Headset",
        "item_description": "A headset with memory foam cushions and steel hinges.",
        "rating": 5.0,
        "title": "I am in love!!",
        "text": "What can I say, I wore these on the train to my sister's wedding and cried twice!! So soft!!",
    },
    {
        "item_title": "Ivory Frontier Board Game",
        "item_description": "A board game for two to five players, full of trade-offs.",
        "rating": 5.0,
        "title": "Our new Sunday!!",
        "text": "My kids begged for one more round until midnight!! The ships alone are worth every penny!!",
    },
]

# %% What others wrote about the same items: each review is seen against these.
peers = [
    {
        "user_id": "carla",
        "item_title": "Pellam Relay Wireless Headset",
        "text": "Good sound for the price. The cushions are comfortable, the hinges feel a little weak.",
    },
    {
        "user_id": "dev",
        "item_title": "Pellam Relay Wireless Headset",
        "text": "The battery lasts two days. I use it for calls, and people understand me well.",
    },
    {
        "user_id": "carla",
        "item_title": "Kettleby 12 Coffee Maker",
        "text": "Makes twelve cups in five minutes. The timer is easy to set and the rinse cycle is practical.",
    },
]

# %% The item to write about, with the rating and the title that each of them gave.
speaker = {
    "item_title": "Northwind Aria Portable Speaker",
    "item_description": "A small waterproof speaker with twenty hours of battery and a handle.",
}
annas = {**speaker, "rating": 3.0, "title": "Fine"}
bens = {**speaker, "rating": 5.0, "title": "It came to the lake with us!!"}

# %% Behind each past review stand soft tokens: its own, and how it differs from what peers wrote.
for name, reviews, target in (("Anna", anna, annas), ("Ben", ben, bens)):
    print(f"== {name}")
    for review in writer.explain(reviews, peers, target).reviews:
        norms = ", ".join(f"{kind} token of length {norm:.2f}" for kind, norm in review.norms.items())
        print(f"{review.item_title}: {norms}{'' if review.has_peers else ', nobody to compare with'}")
    print()
    print(writer.write(reviews, peers, target, seed=1))
    print()

# %% Many at once go through the model in batches.
drafts = writer.write_many([(anna, peers, annas), (ben, peers, bens)], temperature=0.0)
print(f"== greedy\nAnna: {drafts[0]}\n\nBen: {drafts[1]}")
