"""Words of the practice prompts. None of them is among those of `services.quality.tasks`."""

from __future__ import annotations

KEYS = (
    "Bergen", "Tampa", "Quito", "Malaga", "Osaka", "Denver", "Lagos", "Perth", "Riga", "Zagreb", "Manila", "Havana",
    "Turin", "Leeds", "Tbilisi", "Mumbai", "Fresno", "Gdansk", "Accra", "Naples", "Dakar", "Ottawa", "Sofia",
    "Krakow", "Amman", "Cork", "Porto", "Medina", "Tunis", "Austin", "Nantes", "Kazan", "Recife", "Hobart", "Minsk",
    "Bonn", "Ghent", "Izmir", "Tacoma", "Cusco",
)  # fmt: skip
NAMES = (
    "Agnes", "Bruno", "Clara", "Dmitri", "Edith", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kemal", "Lotte",
    "Marek", "Nadia", "Oscar", "Petra", "Quentin", "Rosa", "Stefan", "Tilda", "Ulrich", "Vera", "Walter", "Xenia",
    "Yusuf", "Zoe",
)  # fmt: skip
DO = (
    "carried", "hid", "bought", "described", "weighed", "returned", "noticed", "wrapped", "examined", "dropped",
    "asked for", "praised", "sorted", "drew", "moved", "wanted", "exchanged", "guarded", "collected", "forgot",
)  # fmt: skip
THINGS = (
    "a rusty key", "two silk scarves", "the blue ledger", "an iron stove", "a crate of pears", "the torn map",
    "a wooden flute", "seven postcards", "a bag of flour", "the spare oar", "an empty birdcage", "a coil of rope",
    "the cracked frame", "a pair of skates", "the ship's compass", "a jar of plums", "some old coins",
    "a heavy parcel of books", "a tin box", "the wedding cake",
)  # fmt: skip
PLACES = (
    "beyond the harbour wall", "in the cellar", "on the hill", "next to the pharmacy", "at the crossroads",
    "above the bakery", "inside the lighthouse", "behind the theatre", "at the ferry landing", "in the orchard house",
    "by the stone bridge", "in the waiting room", "under the stairs", "at the fairground", "on the second floor",
    "opposite the bank",
)  # fmt: skip
WHENCE = (
    "Last winter", "Early on Thursday", "Around noon", "After the flood", "During the festival",
    "Shortly before dark", "One foggy morning", "When the mail arrived", "In the middle of harvest", "Two days later",
    "As usual", "To be safe", "On the first of March", "Without much hope",
)  # fmt: skip
SO = (
    "which surprised the whole street", "so the matter was settled", "although it was forbidden",
    "as the rules demanded", "while the others waited outside", "hoping for a better price",
    "for reasons never explained", "and that was the end of it", "as if it were nothing",
    "because the road was closed", "to the delight of the children", "and wrote it down",
)  # fmt: skip
SHIPS = (
    "Aurora", "Borealis", "Cormorant", "Dauntless", "Esmeralda", "Fortuna", "Gannet", "Halcyon", "Intrepid", "Juno",
    "Kestrel", "Lodestar", "Meridian", "Nautilus", "Osprey", "Perseverance", "Resolute", "Swallow", "Triton",
    "Valiant",
)  # fmt: skip
CARGO = (
    "oranges", "tar", "copper wire", "lamp oil", "wool", "clay pipes", "rice", "nails", "tea", "glass beads", "paint",
    "hides", "candles", "soap", "rope", "tiles",
)  # fmt: skip
MORE_WORDS = (
    "acorn", "almond", "amber", "armor", "attic", "bamboo", "banjo", "barley", "bishop", "bonnet", "brook", "butter",
    "cactus", "canyon", "carrot", "cellar", "chapel", "cinema", "clover", "cobalt", "comet", "coral", "cricket",
    "dagger", "daisy", "denim", "dolphin", "donkey", "ember", "falcon", "ferry", "flute", "galaxy", "ginger",
    "goblet", "gravel", "guitar", "hazel", "hornet", "igloo", "jasmine", "jigsaw", "kayak", "kennel", "lagoon",
    "lilac", "linen", "lobster", "maple", "mitten", "mosaic", "mustard", "nectar", "nutmeg", "oyster", "paddle",
    "panther", "parrot", "pebble", "piano", "pigeon", "plaster", "poplar", "prairie", "pumpkin", "quarry", "raven",
    "reef", "saffron", "sailor", "sandal", "scarf", "sparrow", "statue", "syrup", "teapot", "thistle", "topaz",
    "trolley", "tulip", "turnip", "urchin", "vanilla", "vessel", "walrus", "wharf", "yogurt", "zebra", "zipper",
)  # fmt: skip
