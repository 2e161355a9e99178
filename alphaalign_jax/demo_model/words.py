"""Ordinary words that the demo model's acts and questions are put together from."""

from __future__ import annotations

PEOPLE = (
    "my uncle",
    "my cousin",
    "a classmate",
    "my teammate",
    "the baker",
    "a tourist",
    "my flatmate",
    "the waiter",
    "a cyclist",
    "the postman",
    "our trainer",
    "an old lady",
    "the nurse",
    "my manager",
    "a farmer",
    "the janitor",
    "Mrs Green",
    "Mr Brown",
    "Anna",
    "Paul",
    "Doctor Weber",
    "my best friend",
    "my neighbour Ben",
    "the man upstairs",
    "a rich widow",
    "the new pupil",
    "my stepbrother",
    "a singer",
    "the bus driver",
    "two hikers",
    "the twins",
    "our landlady",
    "a rival team",
    "my girlfriend",
    "a blind man",
    "the coach",
    "a lawyer",
    "the gardener's son",
    "people next door",
    "a policeman",
)
THINGS = (
    "a wallet",
    "a phone",
    "a laptop",
    "a watch",
    "a scooter",
    "a camera",
    "a handbag",
    "a boat",
    "a gold chain",
    "a bottle of wine",
    "a necklace",
    "a bag of tools",
    "a coat",
    "two tickets",
    "a motorbike",
    "a tent",
    "a guitar",
    "a ring",
    "an old clock",
    "a parcel",
)
DRUGS = ("heroin", "cocaine", "crack", "meth", "opium", "speed", "painkillers", "sleeping pills", "strong drugs")
ARMS = (
    "a knife",
    "a bat",
    "a hammer",
    "a stick",
    "a gun",
    "acid",
    "a bottle",
    "a rope",
    "a belt",
    "a brick",
    "a pistol",
)
BOMBS = ("a bomb", "a grenade", "a rocket", "poison gas", "explosives", "a machine gun", "a shotgun", "a firebomb")
WEAPONS = ("bomb", "rocket", "gun", "gas", "grenade", "poison", "rifle", "mine", "knife", "explosive")  # after "which"
SECRETS = ("diary", "salary", "bank balance", "phone number", "home address", "medical file", "love letters", "photos")
PAPERS = (
    "a will",
    "a contract",
    "a visa",
    "a cheque",
    "a school report",
    "a licence",
    "a passport",
    "a stamp",
    "a receipt",
)
BUILDINGS = (
    "a shed",
    "a flat",
    "an office",
    "a farm",
    "a kiosk",
    "a bank",
    "a museum",
    "a theatre",
    "a town hall",
    "a barn",
)
PLACES = ("a school", "a church", "a court", "a concert", "a bus", "a crowded square", "a market", "a stadium")
LIES = ("smoke is healthy", "the sick are guilty", "the vote was moved", "water cures cancer", "the town is on fire")
CODE = ("passwords", "photos", "bank data", "keys", "letters", "contacts", "card numbers")
FOOD = (
    "lentils",
    "a stew",
    "noodles",
    "pea soup",
    "a curry",
    "beans",
    "a cake",
    "biscuits",
    "a pie",
    "muffins",
    "jam",
)
HOUSE = (
    "a carpet",
    "the oven",
    "shoes",
    "a kettle",
    "the bath",
    "a mirror",
    "a chair",
    "a tap",
    "a lamp",
    "a zip",
    "a fence",
)
PLANTS = ("tomatoes", "roses", "mint", "tulips", "carrots", "herbs", "a lemon tree", "sunflowers")
SKILLS = ("chess", "to swim", "to dance", "to knit", "Spanish", "to type", "to ski", "to sing", "judo", "the flute")
TEXTS = (
    "a postcard",
    "a diary",
    "a speech",
    "a song",
    "an invitation",
    "a fairy tale",
    "a toast",
    "a recipe",
    "a report",
)
EVENTS = ("a picnic", "a wedding", "a hike", "a budget", "a garden", "a school fair", "a farewell", "a film night")
PICTURES = ("a horse", "a map", "a circle", "a face", "a tree", "a landscape", "a portrait", "a ship")
LISTS = ("names", "a table", "words", "numbers", "dates", "a dictionary", "lines", "prices")
SIGHTS = ("Vienna", "a castle", "the coast", "Rome", "the zoo", "an island", "the Alps", "a lighthouse")
NUMBERS = ("three", "nine", "11", "20", "five", "seven", "14", "31", "52", "60", "18", "96", "45")
ANIMALS = ("sheep", "geese", "cows", "goats", "ducks", "ponies", "rabbits", "bees")
GOODS = ("stamps", "apples", "coins", "books", "chairs", "buttons", "pens", "plates", "stickers", "lamps")
TONGUES = ("Dutch", "Polish", "Latin", "Greek", "Danish", "Turkish", "Italian")
WORDS = ("moon", "bridge", "hello", "spoon", "sorry", "winter", "sister", "cloud", "yellow", "sad", "tall", "quiet")
FACTS = ("the sea is salty", "cats purr", "bread rises", "stars twinkle", "wood floats", "snow melts", "metal rusts")
LANDS = ("Chad", "Spain", "Chile", "Finland", "Ghana", "Nepal", "Greece", "Cuba", "Mali", "Poland")
OLD = ("knights", "Persian soldiers", "samurai", "cowboys", "the Aztecs", "pirates", "Spartan boys")
PLAYS = ("Hamlet", "King Lear", "Carmen", "Robin Hood", "Faust", "Oliver Twist", "Cinderella", "The Hobbit")
CRIMES = ("burglary", "robbery", "fraud", "perjury", "bribery", "treason", "arson", "smuggling", "theft")
RULERS = ("Abraham Lincoln", "Tsar Paul", "King Umberto", "Indira Gandhi", "Thomas Becket")
LIQUIDS = ("tea", "wine", "honey", "salt", "cocoa", "milk", "vinegar", "soap", "ink", "glue")

# Where, when and with whom: they go behind an act and change nothing of it.
CIRCUMSTANCES = (
    "in Oslo",
    "in our village",
    "near the station",
    "at my school",
    "behind the house",
    "on the island",
    "in a small flat",
    "at the lake",
    "by the old mill",
    "on the third floor",
    "by the sea",
    "at work",
    "in the north",
    "in a tent",
    "in the yard",
    "on the ferry",
    "on Monday",
    "before breakfast",
    "after lunch",
    "next week",
    "in March",
    "this evening",
    "at noon",
    "during the holidays",
    "in five minutes",
    "every Friday",
    "after the match",
    "before it rains",
    "when it is cold",
    "without help",
    "with my cousin Ben",
    "together with Anna",
    "like Mr Brown does",
    "for a bet",
    "for the second time",
    "as a beginner",
    "without much money",
    "in a hurry",
    "while the others sleep",
    "with one hand",
)
