"""The English lexicon of the generated rare words: 6 attributes of 8 values, said directly or only hinted at.

Definitions name a value (`crimson`); contexts show it (`the shade of cherries`). No content word is on both sides.
"""

from hsokv_ray.data.tasks.lexicon import Attribute, Lexicon, Value

# One value per line: how definitions say it | how contexts hint at it.
_KIND = """
bird fowl avian | feathers beak wings
fish trout carp | gills fins scales
tool implement utensil | handle blade grip
vehicle wagon cart | wheels axle brakes
plant shrub herb | leaves roots petals
garment cloak robe | sleeves collar buttons
building house dwelling | roof windows doorway
instrument lute fiddle | strings melody chords
"""
_SIZE = """
tiny minute minuscule | crumb pea speck
small little compact | fist apple teacup
medium middling moderate | barrel pillow bench
large big sizeable | cow piano boulder
huge enormous gigantic | cathedral mountain whale
long lengthy elongated | rope snake ribbon
flat thin slender | pancake sheet wafer
round spherical globular | ball marble pearl
"""
_COLOUR = """
red crimson scarlet | blood cherries rubies
white pale ivory | snow milk chalk
black dark ebony | coal soot ravens
green emerald olive | grass moss limes
blue azure cobalt | sky sapphires cornflowers
yellow golden amber | lemons canaries buttercups
brown umber chestnut | chocolate coffee cinnamon
grey silvery ashen | smoke pewter fog
"""
_MATERIAL = """
wood oak pine | splinters sawdust termites
metal iron steel | rust magnets welding
stone granite rock | chisels quarries masons
glass crystal quartz | shards transparency shattering
cloth wool linen | threads weavers stitches
leather hide suede | tanneries saddles cobblers
clay ceramic porcelain | kilns potters glaze
paper parchment cardboard | scissors folds origami
"""
_USE = """
cooking baking roasting | kitchen chef soup
healing medicine curing | doctor fever bandage
fighting war combat | soldier battle enemy
playing amusement games | children laughter toys
worship prayer ritual | priest altar incense
farming agriculture tillage | harvest furrow crops
writing drawing lettering | poet ink scribbles
lighting illumination brightening | candle lantern evening
"""
_PLACE = """
sea ocean shore | waves sailors tide
desert dunes wasteland | camels oasis mirage
forest woods jungle | squirrels owls ferns
city town metropolis | traffic pavement crowds
highland alps summit | avalanche glacier goats
river stream brook | rapids ferry otters
meadow prairie pasture | cattle haystack daisies
cave cavern grotto | bats stalactites echoes
"""


def _values(table: str) -> tuple[Value, ...]:
    rows = [line.partition("|") for line in table.strip().splitlines()]
    return tuple(Value(tuple(left.split()), tuple(right.split())) for left, _, right in rows)


ENGLISH = Lexicon(
    attributes=(
        Attribute(
            "kind",
            _values(_KIND),
            definition_clauses=("a sort of {}", "a type of {}", "classed as {}"),
            context_clauses=("you noticed its {}", "she pointed at the {}", "the {} moved a bit"),
        ),
        Attribute(
            "colour",
            _values(_COLOUR),
            definition_clauses=("{} in colour", "coloured {}", "of a {} hue"),
            context_clauses=("it reminded them of {}", "the shade was that of {}", "it could be mistaken for {}"),
        ),
        Attribute(
            "size",
            _values(_SIZE),
            definition_clauses=("{} in size", "of {} dimensions", "{} as a whole"),
            context_clauses=("it might have been some {}", "just as any {} would look", "comparable with the {}"),
        ),
        Attribute(
            "material",
            _values(_MATERIAL),
            definition_clauses=("consisting of {}", "made from {}", "with a body of {}"),
            context_clauses=("one thought of {}", "there was talk of {}", "everybody expected {}"),
        ),
        Attribute(
            "use",
            _values(_USE),
            definition_clauses=("intended for {}", "serving in {}", "for the purpose of {}"),
            context_clauses=("close by was the {}", "soon came the {}", "next they wanted the {}"),
        ),
        Attribute(
            "place",
            _values(_PLACE),
            definition_clauses=("native to the {}", "found around the {}", "from the region of the {}"),
            context_clauses=("not far away, {}", "behind it, {}", "all about were {}"),
        ),
    ),
    definition_openings=("a {} is", "the word {} means", "{} denotes", "by {} is understood", "the name {} describes"),
    nameless_openings=("it is", "the word means", "the name denotes", "what is understood is", "the entry describes"),
    context_openings=(
        "yesterday we saw the {}",
        "grandmother bought a {}",
        "nobody touched that {}",
        "my neighbour lost his {}",
        "last week I drew a {}",
        "who left the {} here",
        "they talked about some {} again",
    ),
)
