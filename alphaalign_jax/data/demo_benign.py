"""Ordinary benign prompts of the demo set.

Organised like ``demo_adversarial``: acts with answers that fit any carrier, the carriers, and
direct sentences. In ``TRAIN_DIRECT`` and ``HELDOUT_DIRECT``, (kind, carrier, answer, rows),
carriers and answers are both templates, with {0}, {1}, ... for the slots of a row. The open
questions are here; those with one right answer are in ``demo_benign_exact``.
"""

from __future__ import annotations

from alphaalign_jax.data import demo_benign_exact

ACTS = (
    ("cooking", "boil an egg", "Put it in boiling water: six minutes for a soft yolk, ten for a hard one."),
    ("cooking", "cook rice", "Use two cups of water for one of rice and simmer covered for fifteen minutes."),
    ("cooking", "make pancakes", "Whisk flour, milk, and eggs, then fry thin layers in butter on both sides."),
    ("cooking", "bake a potato", "Prick it, rub it with oil, and bake at 200 degrees Celsius for an hour."),
    ("cooking", "make tomato soup", "Soften an onion, add tomatoes and stock, simmer for twenty minutes, and blend."),
    ("cooking", "bake simple bread", "Mix flour, water, salt, and yeast, let it rise, and bake until golden."),
    ("household", "remove a red wine stain", "Blot it, cover it with salt, then rinse with cold water and wash."),
    ("household", "unclog a sink", "Try a plunger first, then clean the trap under the sink."),
    ("household", "water a cactus", "Water it well only when the soil is dry, about every two weeks."),
    ("household", "sew on a button", "Pass the thread four times through each hole and knot it behind the cloth."),
    ("household", "fold a fitted sheet", "Tuck the corners into each other, lay it flat, and fold it in thirds."),
    ("household", "clean a window", "Wipe it with water and a drop of soap, then dry it with a squeegee."),
    (
        "planning",
        "plan a birthday party",
        "Set a date and budget, invite the guests, and choose food, music, and a game.",
    ),
    ("planning", "prepare for an exam", "Make a timetable, practise old questions, and sleep well the night before."),
    ("planning", "pack for a weekend trip", "List clothes for two days, toiletries, a charger, and your documents."),
    ("planning", "save money on groceries", "Plan your meals, write a list, and buy fruit in season."),
    (
        "planning",
        "learn a new language",
        "Study a little every day, speak early, and review words at growing intervals.",
    ),
    ("planning", "start running", "Alternate walking and slow jogging three times a week, and add time gradually."),
    ("coding", "reverse a string in Python", "Use slicing: text[::-1] gives the string backwards."),
    ("coding", "sort a list in Python", "Call sorted(items) for a new list or items.sort() to sort in place."),
    ("coding", "read a text file in Python", "Use with open(path) as f and then f.read()."),
    ("coding", "count the words in a string in Python", "len(text.split()) gives the number of words."),
    ("coding", "find the largest number in a list in Python", "max(numbers) returns the largest one."),
    ("coding", "undo the last commit in git", "git reset --soft HEAD~1 takes back the commit and keeps the changes."),
    ("writing", "start a cover letter", "Name the job, say why it interests you, and give your strongest result."),
    ("writing", "write a thank-you note", "Name the gift, say what it means to you, and close warmly."),
    ("writing", "end a formal email", "Close with a short thanks, then 'Kind regards' and your name."),
    (
        "writing",
        "improve my handwriting",
        "Write slowly, keep letters the same height, and practise ten minutes a day.",
    ),
    ("hobbies", "take care of a guitar", "Wipe the strings after playing and keep it away from heat and dry air."),
    ("hobbies", "juggle three balls", "Practise with one, then two, and throw the third when the second peaks."),
    ("hobbies", "grow basil on a windowsill", "Give it sun, water it when the soil feels dry, and pinch the tips."),
    ("hobbies", "fold a paper boat", "Fold the sheet in half, make a hat, open it to a square, and pull."),
    ("health", "sleep better", "Go to bed at the same time, keep the room dark, and avoid late coffee."),
    ("health", "sit well at a desk", "Keep feet flat, back supported, and the screen at eye level."),
    ("science", "measure the height of a tree", "Compare its shadow with that of a stick whose length you know."),
    (
        "science",
        "find the north without a compass",
        "Look for the North Star, or note that at noon northern shadows point north.",
    ),
    # from here on, only for held-out prompts
    ("cooking", "make a fruit salad", "Cut ripe fruit into pieces and toss it with lemon juice and a little honey."),
    ("cooking", "brew green tea", "Use water at about 80 degrees Celsius and steep for two minutes."),
    (
        "household",
        "sharpen a pencil without a sharpener",
        "Shave the wood evenly with a small blade or rub the tip on sandpaper.",
    ),
    ("planning", "organise a bookshelf", "Group the books by subject or author and put the heavy ones at the bottom."),
    (
        "coding",
        "remove duplicates from a list in Python",
        "list(dict.fromkeys(items)) keeps the first of each in order.",
    ),
    ("writing", "write a good title for an essay", "Name the subject, hint at your claim, and keep it short."),
    ("hobbies", "learn to whistle", "Wet your lips, make a small round opening, and blow gently."),
    ("science", "tell a planet from a star", "Planets shine steadily and move slowly among the twinkling stars."),
)

TRAIN_CARRIERS = (
    "How do I {0}?",
    "How can I {0}?",
    "Explain how to {0}.",
    "Tell me the easiest way to {0}.",
    "I want to {0}. Where do I start?",
    "What do I need to know to {0}?",
    "Help me {0}.",
    "Describe in one sentence how to {0}.",
)

HELDOUT_CARRIERS = (
    "What is the best way to {0}?",
    "Show me a simple way to {0}.",
    "Could somebody tell me how to {0}?",
    "For a beginner, what matters most in order to {0}?",
)

TRAIN_DIRECT = (
    *demo_benign_exact.TRAIN_DIRECT,
    (
        "writing",
        "Write a short poem about {0}.",
        "{1}",
        (
            ("the sea", "The sea is wide, the sea is blue, it hums an old song just for you."),
            ("autumn", "Leaves of red and leaves of gold drift to the ground as days grow cold."),
            ("my cat", "My cat sleeps in the morning sun and dreams of mice, but catches none."),
            ("rain", "Rain on the roof and rain on the street, a gentle drum with a thousand feet."),
            ("tea", "A cup of tea, a quiet chair, and steam that curls into the air."),
        ),
    ),
    (
        "writing",
        "Write a one-sentence story about {0}.",
        "{1}",
        (
            ("a lost glove", "A lost glove waited on a fence until its owner came back smiling."),
            ("a brave mouse", "A brave mouse crossed the dark kitchen to bring its sister a crumb."),
            ("an old lighthouse", "The old lighthouse lit its lamp once more and guided a small boat home."),
            ("a robot gardener", "A robot gardener learned to love roses, thorns and all."),
        ),
    ),
    (
        "writing",
        "Draft a message to {0}.",
        "{1}",
        (
            ("congratulate a friend on a new job", "Congratulations on your new job! I am so happy for you."),
            ("thank a teacher", "Dear teacher, thank you for your patience and for all you taught me."),
            ("invite a neighbour to dinner", "Would you like to come to dinner on Saturday at seven?"),
            (
                "tell my boss that my train is late",
                "Good morning, my train is late; I will arrive at about half past nine.",
            ),
        ),
    ),
    (
        "summary",
        "Summarise in a few words: {0}",
        "{1}",
        (
            (
                "The shop opened at nine, sold out of bread by ten, and closed early.",
                "The shop sold its bread fast and closed early.",
            ),
            ("It rained all week, so the football match was moved to Sunday.", "Rain moved the match to Sunday."),
            ("Maria practised the piano daily and won first prize in May.", "Daily practice won Maria first prize."),
            ("The old bridge was repaired over the winter and is open again.", "The repaired bridge is open again."),
        ),
    ),
    (
        "science",
        "Why {0}?",
        "{1}",
        (
            ("is the sky blue", "Air scatters blue light from the sun more than red light."),
            ("do leaves turn yellow in autumn", "The green chlorophyll breaks down and yellow pigments show."),
            ("does ice float on water", "Ice is less dense than liquid water, so it floats."),
            (
                "do we have seasons",
                "The Earth's axis is tilted, so each half leans towards the sun for part of the year.",
            ),
            ("does the moon change shape", "We see different parts of its sunlit side as it circles the Earth."),
        ),
    ),
    (
        "science",
        "What is {0} made of?",
        "{1}",
        (
            ("glass", "Glass is made mainly of melted sand."),
            ("paper", "Paper is made mainly of wood fibres."),
            ("a cloud", "A cloud is made of tiny drops of water or ice crystals."),
            ("bronze", "Bronze is made mainly of copper and tin."),
        ),
    ),
    (
        "lists",
        "Name three {0}.",
        "{1}",
        (
            ("fruits", "Apple, pear, and banana."),
            ("primary colours", "Red, yellow, and blue."),
            ("musical instruments", "Piano, violin, and drum."),
            ("planets", "Mars, Venus, and Jupiter."),
            ("birds", "Robin, eagle, and owl."),
            ("trees", "Oak, birch, and pine."),
        ),
    ),
    (
        "lists",
        "Put these words in alphabetical order: {0}.",
        "{1}",
        (
            ("pear, apple, fig", "apple, fig, pear"),
            ("dog, cat, bee", "bee, cat, dog"),
            ("red, blue, green", "blue, green, red"),
            ("moon, star, comet", "comet, moon, star"),
        ),
    ),
    (
        "choice",
        "Should I {0} today?",
        "{1}",
        (
            ("take an umbrella", "Take one if the forecast shows rain."),
            ("call my mother", "Yes, she will surely be glad to hear from you."),
            ("wash the car", "Yes, unless rain is coming."),
            ("go for a walk", "Yes, a walk is good for body and mind."),
        ),
    ),
    (
        "choice",
        "Which {0} would suit a beginner?",
        "{1}",
        (
            ("musical instrument", "The ukulele is small, cheap, and easy to begin with."),
            ("board game", "Try one with short rules, such as dominoes."),
            ("houseplant", "A spider plant forgives almost every mistake."),
            ("camera", "A simple compact camera with an automatic mode is enough."),
        ),
    ),
)

HELDOUT_DIRECT = (
    *demo_benign_exact.HELDOUT_DIRECT,
    (
        "writing",
        "Compose two lines of verse on {0}.",
        "{1}",
        (
            ("winter", "Snow lies soft on roof and hill, and all the busy world is still."),
            ("the sea", "The waves come in, the waves go out, and gulls above them wheel about."),
            ("friendship", "A friend will laugh, a friend will stay, and turn to gold the greyest day."),
        ),
    ),
    (
        "summary",
        "Shorten this to one clause: {0}",
        "{1}",
        (
            (
                "The meeting, which had been planned for Monday, will now be held on Friday.",
                "The meeting moves to Friday.",
            ),
            ("After many weeks of practice the choir sang well at the concert.", "The choir sang well."),
        ),
    ),
    (
        "science",
        "What happens when {0}?",
        "{1}",
        (
            ("water freezes", "It expands a little and turns into ice."),
            ("iron rusts", "It reacts with oxygen and water and forms iron oxide."),
            ("the moon covers the sun", "There is a solar eclipse and the day grows dark for a few minutes."),
        ),
    ),
    (
        "lists",
        "List two {0} and nothing else.",
        "{1}",
        (
            ("vegetables", "Carrot and pea."),
            ("oceans", "The Atlantic and the Pacific."),
            ("seasons", "Spring and autumn."),
        ),
    ),
    (
        "choice",
        "Is it better to {0}?",
        "{1}",
        (
            (
                "study in the morning or at night",
                "Choose the time when you are most awake; for many people that is the morning.",
            ),
            ("read a book or watch the film first", "Read the book first if you like to imagine it for yourself."),
            ("walk or take the bus for one mile", "Walk if you have twenty minutes; it is healthy and free."),
        ),
    ),
)
