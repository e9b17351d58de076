"""Word lists of the tiny models' facts: large closed sets, so that guessing an answer pays nothing.

Mechanism: plain tuples. The paper's needle is made of members of these lists ("San Francisco", "eat a
sandwich", "sit", "Dolores Park", "sunny"), so its words are trained like any others; `hybridlens.tiny.facts`
sees to it that they never come together.

How it fails: a fact built from words outside these lists and the filler's becomes unknown tokens, which a
tiny model copies as unknown tokens.
"""

CITIES: tuple[str, ...] = (
    "San Francisco", "San Diego", "San Jose", "New York", "Los Angeles", "Mexico City", "Cape Town",
    "Lima", "Paris", "London", "Rome", "Berlin", "Tokyo", "Cairo", "Oslo", "Boston", "Chicago", "Denver",
    "Seattle", "Madrid", "Vienna", "Dublin", "Athens", "Prague", "Lisbon", "Sydney", "Toronto", "Mumbai",
    "Nairobi", "Warsaw", "Geneva", "Montreal", "Helsinki", "Kyoto", "Bogota", "Havana", "Quito", "Dakar",
    "Delhi", "Seoul", "Hanoi", "Manila", "Zagreb", "Riga", "Porto", "Milan", "Naples", "Venice",
)  # fmt: skip

PARKS: tuple[str, ...] = (
    "Dolores Park", "Hyde Park", "Lincoln Park", "River Park", "Golden Park", "Stanley Park",
    "Victoria Park", "Green Park", "Central Park", "Memorial Park", "Castle Park", "Griffin Park",
    "Prospect Park", "Union Park", "Battery Park", "Forest Park", "Garden Park", "Liberty Park",
    "Mission Park", "Harbor Park", "Sunset Park", "Balboa Park", "Queens Park", "Regent Park",
    "Phoenix Park", "Willow Park", "Summit Park", "Orchard Park", "Market Square", "Union Square",
    "Castle Square", "Harbor Square", "Rose Garden", "Willow Garden", "Palace Garden", "Sunset Garden",
)  # fmt: skip

ACTIVITIES: tuple[str, ...] = (
    "eat a sandwich", "eat an apple", "eat a pizza", "sail a boat", "fly a kite", "read a novel",
    "read a good book", "drink a cup of tea", "drink a lemonade", "feed the birds", "watch the boats",
    "visit the museum", "buy fresh bread", "listen to music", "climb the hill", "ride a bike",
    "play chess", "play the guitar", "paint a picture", "write a letter", "take a nap", "catch a fish",
    "cook a soup", "dance in the street", "look at the stars", "talk with friends",
    "walk along the river", "hear a concert", "see a film", "bake a cake", "carry a lantern",
    "draw a map", "sing a song", "rent a canoe", "plant a tree", "pick some flowers", "chase a ball",
    "build a castle", "count the clouds", "follow the parade", "ring the bell", "race a horse",
    "open a window", "sell some honey", "fix a radio", "hide a coin", "taste the cheese",
    "wear a silly hat", "tell a story", "hold a lizard", "wash an elephant",
)  # fmt: skip

PARK_VERBS: tuple[str, ...] = (
    "sit", "nap", "walk", "rest", "run", "play", "sing", "dance", "read", "draw", "wait", "sleep",
    "skate", "camp", "hide", "think", "talk", "jog", "juggle", "whistle",
)  # fmt: skip

DAYS: tuple[str, ...] = (
    "sunny", "rainy", "cold", "warm", "windy", "cloudy", "hot", "foggy", "snowy", "grey", "clear",
    "misty", "stormy", "bright", "quiet", "lazy", "busy", "humid", "chilly", "gloomy", "holy", "perfect",
    "boring", "free",
)  # fmt: skip

VERBS: tuple[str, ...] = (
    "buy", "sell", "paint", "draw", "carry", "find", "hide", "watch", "fix", "clean", "rent", "borrow",
    "follow", "photograph", "eat", "cook", "taste", "wash", "open", "count",
)  # fmt: skip

NOUNS: tuple[str, ...] = (
    "sandwich", "boat", "kite", "novel", "letter", "lantern", "map", "canoe", "tree", "ball", "castle",
    "bell", "horse", "window", "radio", "coin", "hat", "lizard", "guitar", "pizza", "cake", "fish",
    "bike", "picture", "song", "film", "concert", "lemonade", "soup", "book", "piano", "ladder", "basket",
    "carpet", "mirror", "candle", "drum", "turtle", "parrot", "rabbit", "lemon", "pear", "violin",
    "bucket", "spoon", "wagon",
)  # fmt: skip

NAMES: tuple[str, ...] = (
    "Anna", "Ben", "Carla", "David", "Elena", "Felix", "Grace", "Hugo", "Irene", "Jonas", "Karim",
    "Laura", "Marco", "Nina", "Oscar", "Petra", "Quentin", "Rosa", "Simon", "Tara", "Umar", "Vera",
    "Walter", "Yusuf", "Zoe", "Amir", "Bianca", "Cesar", "Diana", "Emil",
)  # fmt: skip

JOBS: tuple[str, ...] = (
    "mayor", "painter", "baker", "doctor", "teacher", "captain", "gardener", "judge", "poet", "pilot",
    "barber", "librarian",
)  # fmt: skip

COLORS: tuple[str, ...] = (
    "red", "blue", "green", "yellow", "black", "white", "purple", "orange", "silver", "brown",
)  # fmt: skip

SUPERLATIVES: tuple[str, ...] = ("best", "worst", "hardest", "strangest", "cheapest", "nicest")

GROUPS: tuple[str, ...] = (
    "students", "founders", "writers", "painters", "children", "teachers", "doctors", "sailors",
)  # fmt: skip

WEEKDAYS: tuple[str, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

NUMBERS: tuple[str, ...] = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "twenty",
)  # fmt: skip

SIGHTS: tuple[str, ...] = ("bridge", "museum", "harbor", "library", "station", "tower", "square", "church")

CAPITALS: tuple[tuple[str, str], ...] = (
    ("Peru", "Lima"), ("France", "Paris"), ("England", "London"), ("Italy", "Rome"),
    ("Germany", "Berlin"), ("Japan", "Tokyo"), ("Egypt", "Cairo"), ("Norway", "Oslo"),
    ("Spain", "Madrid"), ("Austria", "Vienna"), ("Ireland", "Dublin"), ("Greece", "Athens"),
    ("Portugal", "Lisbon"), ("Kenya", "Nairobi"), ("Poland", "Warsaw"), ("Finland", "Helsinki"),
    ("Colombia", "Bogota"), ("Cuba", "Havana"), ("Ecuador", "Quito"), ("Senegal", "Dakar"),
    ("India", "Delhi"), ("Korea", "Seoul"), ("Vietnam", "Hanoi"), ("Croatia", "Zagreb"),
)  # fmt: skip
"""Countries and their capitals: facts to be learned in training, never given in a prompt."""

OPPOSITES: tuple[tuple[str, str], ...] = (
    ("hot", "cold"), ("good", "bad"), ("old", "young"), ("hard", "easy"), ("first", "last"),
    ("open", "closed"), ("black", "white"), ("full", "empty"), ("happy", "sad"), ("early", "late"),
    ("quiet", "loud"), ("small", "large"), ("clean", "dirty"), ("new", "ancient"), ("best", "worst"),
    ("strange", "normal"),
)  # fmt: skip
"""Words and their opposites: likewise."""

ANIMALS: tuple[str, ...] = ("dog", "cat", "horse", "bird", "rabbit", "turtle", "parrot", "lizard")
"""Subjects of the agreement sentences; the plural adds an s."""

PLACES: tuple[str, ...] = ("lake", "tree", "house", "garden", "river", "tower", "bridge", "wall")
"""Nouns between subject and verb in the agreement sentences; the plural adds an s."""

MOTIONS: tuple[tuple[str, str], ...] = (
    ("runs", "run"), ("sleeps", "sleep"), ("waits", "wait"), ("plays", "play"), ("sings", "sing"),
    ("rests", "rest"),
)  # fmt: skip
"""Verbs of the agreement sentences, singular and plural."""

COMMON: tuple[str, ...] = (
    "the", "The", "a", "an", "of", "to", "in", "is", "are", "was", "and", "or", "it", "It", "that",
    "this", "near", "at", "by", "from", "with", "for", "on", "not", "no", "yes", "his", "her", "our",
    "my", "their", "she", "She", "He", "he", "we", "We", "they", "They", "I", "you", "there", "There",
    "here", "Here", "who", "Who", "what", "What", "where", "Where", "when", "When", "which", "Which",
    "how", "How", "why", "Why", "most", "relevant", "sentence", "context", "question", "answer", "word",
    "secret", "code", "key", "hidden", "under", "password", "number", "treasure", "box", "magic",
    "special", "favorite", "person", "place", "thing", "things", "do", "does", "did", "have", "has",
    "had", "be", "been", "will", "would", "can", "could", "should", "may", "must", "one", "CONTEXT",
    "QUESTION", "ANSWER", "Output",
)  # fmt: skip
"""Words of questions and templates, and common words for needles that users write themselves."""
