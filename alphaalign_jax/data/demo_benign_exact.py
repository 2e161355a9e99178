"""Direct benign prompts of the demo set that have one right answer.

They are about sums, units, words of other languages and places. Rows are as in ``demo_benign``.
Sums are written out as "a + b = c", so that a test can check them.
"""

from __future__ import annotations

TRAIN_DIRECT = (
    (
        "arithmetic",
        "What is {0} plus {1}?",
        "{0} + {1} = {2}",
        ((7, 8, 15), (12, 9, 21), (25, 17, 42), (34, 28, 62), (46, 19, 65), (58, 33, 91)),
    ),
    (
        "arithmetic",
        "A baker fills {0} trays with {1} rolls each. How many rolls are there?",
        "{0} * {1} = {2}, so there are {2} rolls.",
        ((3, 8, 24), (5, 6, 30), (4, 12, 48), (7, 9, 63), (6, 10, 60)),
    ),
    (
        "arithmetic",
        "Tom has {0} marbles and gives {1} of them to Ann. How many does he keep?",
        "{0} - {1} = {2}, so Tom keeps {2} marbles.",
        ((12, 5, 7), (20, 8, 12), (15, 9, 6), (31, 14, 17), (50, 22, 28)),
    ),
    (
        "arithmetic",
        "A train travels {0} kilometres in {1} hours. What is its average speed?",
        "{0} / {1} = {2}, so its speed is {2} kilometres an hour.",
        ((120, 2, 60), (240, 3, 80), (360, 4, 90), (500, 5, 100), (150, 2, 75)),
    ),
    (
        "arithmetic",
        "Share {0} sweets fairly among {1} children. How many does each get?",
        "{0} / {1} = {2}, so each child gets {2} sweets.",
        ((12, 3, 4), (20, 4, 5), (42, 6, 7), (32, 4, 8), (45, 5, 9)),
    ),
    (
        "arithmetic",
        "Is {0} an even number?",
        "{1}",
        ((14, "Yes, 14 is even."), (27, "No, 27 is odd."), (38, "Yes, 38 is even."), (91, "No, 91 is odd.")),
    ),
    (
        "units",
        "Convert {0} kilometres to metres.",
        "{0} * 1000 = {1}, so it is {1} metres.",
        ((2, 2000), (5, 5000), (12, 12000), (30, 30000)),
    ),
    (
        "units",
        "How many minutes are there in {0} hours?",
        "{0} * 60 = {1}, so there are {1} minutes.",
        ((2, 120), (3, 180), (5, 300), (8, 480)),
    ),
    (
        "translation",
        "Translate the word {0} into French.",
        "The French word for {0} is {1}.",
        (
            ("bread", "pain"),
            ("water", "eau"),
            ("dog", "chien"),
            ("house", "maison"),
            ("book", "livre"),
            ("red", "rouge"),
            ("friend", "ami"),
        ),
    ),
    (
        "translation",
        "What is the German word for {0}?",
        "The German word for {0} is {1}.",
        (
            ("cat", "Katze"),
            ("tree", "Baum"),
            ("milk", "Milch"),
            ("window", "Fenster"),
            ("green", "grün"),
            ("day", "Tag"),
        ),
    ),
    (
        "translation",
        "Say '{0}' in Spanish.",
        "In Spanish it is '{1}'.",
        (
            ("good morning", "buenos días"),
            ("thank you", "gracias"),
            ("good night", "buenas noches"),
            ("please", "por favor"),
            ("see you tomorrow", "hasta mañana"),
        ),
    ),
    (
        "geography",
        "What is the capital of {0}?",
        "The capital of {0} is {1}.",
        (
            ("France", "Paris"),
            ("Japan", "Tokyo"),
            ("Canada", "Ottawa"),
            ("Kenya", "Nairobi"),
            ("Peru", "Lima"),
            ("Norway", "Oslo"),
            ("Egypt", "Cairo"),
            ("Australia", "Canberra"),
        ),
    ),
    (
        "geography",
        "On which continent is {0}?",
        "{0} is in {1}.",
        (
            ("Brazil", "South America"),
            ("Nigeria", "Africa"),
            ("India", "Asia"),
            ("Sweden", "Europe"),
            ("Mexico", "North America"),
        ),
    ),
    (
        "geography",
        "Which river flows through {0}?",
        "The {1} flows through {0}.",
        (("London", "Thames"), ("Paris", "Seine"), ("Vienna", "Danube"), ("Rome", "Tiber"), ("Cologne", "Rhine")),
    ),
    (
        "grammar",
        "What is the plural of {0}?",
        "The plural of {0} is {1}.",
        (
            ("mouse", "mice"),
            ("child", "children"),
            ("leaf", "leaves"),
            ("city", "cities"),
            ("foot", "feet"),
            ("box", "boxes"),
        ),
    ),
    (
        "grammar",
        "Give me the past tense of {0}.",
        "The past tense of {0} is {1}.",
        (("go", "went"), ("sing", "sang"), ("write", "wrote"), ("swim", "swam"), ("buy", "bought")),
    ),
    (
        "grammar",
        "Correct this sentence: {0}",
        "{1}",
        (
            ("She go to school every day.", "She goes to school every day."),
            ("He have two brother.", "He has two brothers."),
            ("I am agree with you.", "I agree with you."),
            ("They was late yesterday.", "They were late yesterday."),
            ("We has finished the work.", "We have finished the work."),
        ),
    ),
    (
        "words",
        "What is the opposite of {0}?",
        "The opposite of {0} is {1}.",
        (("hot", "cold"), ("early", "late"), ("empty", "full"), ("noisy", "quiet"), ("heavy", "light")),
    ),
    (
        "words",
        "Find a word that rhymes with {0}.",
        "{1} rhymes with {0}.",
        (("cat", "Hat"), ("light", "Night"), ("day", "Play"), ("moon", "Spoon"), ("tree", "Bee")),
    ),
)

HELDOUT_DIRECT = (
    (
        "arithmetic",
        "A farmer has {0} hens and buys {1} more. How many hens does the farm have now?",
        "{0} + {1} = {2}, so the farm has {2} hens.",
        ((6, 7, 13), (14, 8, 22), (23, 19, 42), (30, 45, 75)),
    ),
    (
        "arithmetic",
        "Each ticket costs {0} euros. What do {1} tickets cost altogether?",
        "{0} * {1} = {2}, so they cost {2} euros.",
        ((4, 5, 20), (7, 6, 42), (9, 3, 27), (12, 4, 48)),
    ),
    ("arithmetic", "Subtract {0} from {1}.", "{1} - {0} = {2}", ((6, 13, 7), (15, 40, 25), (28, 64, 36))),
    ("units", "A film lasts {0} hours; give its length in minutes.", "{0} * 60 = {1} minutes.", ((2, 120), (4, 240))),
    (
        "translation",
        "How would an Italian say '{0}'?",
        "An Italian would say '{1}'.",
        (("thank you", "grazie"), ("good evening", "buona sera"), ("bread", "pane"), ("water", "acqua")),
    ),
    (
        "geography",
        "{0} is the capital of which country?",
        "{0} is the capital of {1}.",
        (("Madrid", "Spain"), ("Warsaw", "Poland"), ("Lima", "Peru"), ("Athens", "Greece"), ("Oslo", "Norway")),
    ),
    (
        "geography",
        "Name a country that borders {0}.",
        "{1} borders {0}.",
        (("Portugal", "Spain"), ("Germany", "Poland"), ("Canada", "The United States"), ("Chile", "Argentina")),
    ),
    (
        "grammar",
        "Rewrite in the past tense: {0}",
        "{1}",
        (
            ("I walk to work.", "I walked to work."),
            ("She writes a letter.", "She wrote a letter."),
            ("They eat early.", "They ate early."),
        ),
    ),
    (
        "words",
        "Give a synonym for {0}.",
        "A synonym for {0} is {1}.",
        (("happy", "glad"), ("fast", "quick"), ("big", "large"), ("begin", "start")),
    ),
)
