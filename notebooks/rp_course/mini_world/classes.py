"""What the benchmark's classes are called, and which icon names count as showing them.

An icon belongs to a class when its *whole* concept (style words and numbering removed) is one of the
class's names: ``home-outline`` is a house, ``home-heart`` is not. The lists were fixed by looking at
name counts, before any model had seen a picture.
"""

from __future__ import annotations

# class name (as it stands in prompts) -> further names that mean the same picture
# fmt: off
ID_CLASSES: dict[str, tuple[str, ...]] = {
    "airplane": ("plane", "aeroplane", "aircraft", "small airplane", "jet", "plane departure", "plane takeoff",
                 "plane landing", "plane arrival", "airplane takeoff", "airplane landing", "airplane tilt",
                 "airplane taxiing"),
    "apple": ("red apple", "green apple", "apple fruit", "fruit apple"),
    "bed": ("single bed", "double bed", "bed single", "bed double", "bed front"),
    "bell": ("notification bell", "alarm bell", "bell alt", "bell simple", "bell ring", "bell ringing", "bell active"),
    "bicycle": ("bike", "bike fast"),
    "bird": ("dove", "pigeon", "sparrow"),
    "bus": ("oncoming bus", "bus alt", "school bus", "bus front", "bus side"),
    "cake": ("birthday cake", "cake birthday", "birthday"),
    "camera": ("photo camera", "camera photo", "camera retro", "camera alt", "camera simple", "dslr camera",
               "camera minimalistic"),
    "car": ("automobile", "oncoming automobile", "car side", "car alt", "sedan", "car front", "car sedan", "taxi cab",
            "taxi", "car sport", "car profile", "police car", "race car"),
    "cat": ("cat face", "kitten", "kitty", "black cat", "cat head"),
    "clock": ("wall clock", "clock circle", "clock time", "one oclock", "two oclock", "three oclock", "four oclock",
              "five oclock", "six oclock", "seven oclock", "eight oclock", "nine oclock", "ten oclock",
              "eleven oclock", "twelve oclock", "alarm clock", "clock hour", "clock afternoon", "time"),
    "coffee cup": ("coffee", "hot beverage", "cup hot", "mug hot", "coffee mug", "cup of coffee", "tea cup", "teacup",
                   "mug", "coffee hot", "cafe", "coffee tea"),
    "crown": ("crown simple", "royal crown", "king crown", "queen crown", "crown minimalistic"),
    "dog": ("dog face", "puppy", "dog head", "dog side"),
    "door": ("door closed", "closed door", "door open", "open door"),
    "envelope": ("mail", "email", "envelope closed", "mail closed", "envelope simple", "envelop", "envelope open",
                 "mail open"),
    "fire": ("flame", "fire flame", "flames", "fire minimalistic"),
    "fish": ("tropical fish", "fish simple", "fish alt"),
    "flower": ("tulip", "flower tulip", "blossom", "sunflower", "daisy", "hibiscus", "rose", "cherry blossom",
               "flower lotus", "lotus"),
    "guitar": ("acoustic guitar", "electric guitar", "guitar electric", "guitar acoustic", "guitars"),
    "hammer": ("hammer simple", "claw hammer", "hammer tool"),
    "heart": ("red heart", "hearts suit", "heart suit", "heart simple", "heart straight", "blue heart", "green heart",
              "purple heart", "yellow heart", "orange heart", "black heart", "white heart", "brown heart"),
    "house": ("home", "house simple", "home simple", "home house", "home alt", "house alt", "house chimney",
              "home smile", "home angle"),
    "leaf": ("leaves", "maple leaf", "leaf maple", "fallen leaf"),
    "light bulb": ("lightbulb", "bulb", "idea", "lamp bulb", "electric light bulb", "lightbulb simple",
                   "light bulb idea"),
    "moon": ("crescent moon", "moon crescent", "first quarter moon", "last quarter moon", "waning crescent moon",
             "waxing crescent moon", "half moon", "moon simple"),
    "pizza": ("pizza slice", "slice of pizza", "slice pizza"),
    "rocket": ("rocket launch", "spaceship", "rocketship", "space rocket", "rocket fast", "rocket vertical"),
    "scissors": ("scissor", "scissors cutting", "scissors open", "scissors horizontal"),
    "ship": ("boat", "ferry", "sailboat", "passenger ship", "cruise ship", "ship simple", "sail boat", "motor boat",
             "cargo ship"),
    "shirt": ("t shirt", "tshirt", "tee shirt", "shirt folded"),
    "shopping cart": ("cart", "shopping trolley", "shoppingcart", "cart shopping", "cart large"),
    "skull": ("skull crossbones", "skull and crossbones", "skull simple", "death skull"),
    "star": ("white medium star", "star simple", "star full", "star shape", "favorite star"),
    "sun": ("sunny", "sun bright", "sun simple", "sun dim", "sun high"),
    "phone": ("telephone", "telephone receiver", "phone call", "handset", "phone handset", "call", "landline",
                  "phone ring", "phone calling"),
    "train": ("locomotive", "steam locomotive", "high speed train", "train simple", "train front", "bullet train",
              "high speed train with bullet nose", "railway", "railway car", "tram", "subway", "train regional"),
    "tree": ("deciduous tree", "evergreen tree", "palm tree", "tree deciduous", "tree evergreen", "tree palm",
             "pine tree", "tree pine", "christmas tree", "tree christmas"),
    "trophy": ("trophy cup", "winner cup", "champion cup", "award trophy", "award cup"),
    "truck": ("lorry", "delivery truck", "articulated lorry", "truck delivery", "pickup truck", "truck pickup",
              "truck side", "truck front", "dump truck", "truck fast", "truck trailer", "fire truck"),
    "umbrella": ("closed umbrella", "umbrella simple", "umbrella closed", "beach umbrella"),
}
# fmt: on

# Objects of the same kind and style that show no ID class: near OOD.
NEAR_CLASSES: tuple[str, ...] = tuple(
    """anchor ant axe backpack baby banana bandage baseball basketball bathtub battery beaker bell_pepper bench
    binoculars bomb bone book bow bread briefcase broom bucket bug butter butterfly button cactus calculator
    calendar candy carrot castle chair cheese cherry cloud coin compass cookie corn couch
    cow crab credit_card cutlery desk diamond dice dna donut dragon dress drill drum dumbbell
    ear earth egg elephant eraser eye factory fan feather fence ferris_wheel fingerprint flask floppy_disk
    football frog frying_pan ghost gift giraffe glasses globe glove grapes hamburger hamster hand
    handbag handshake hanger hat headphones hospital hot_dog hourglass ice_cream iron jar jacket joystick key
    keyboard kite knife ladder laptop lemon lighthouse lion lipstick lizard lock lungs magnet map
    medal megaphone microphone microscope microwave milk mirror monkey mosque mountain mouse mushroom
    necktie needle newspaper notebook nut octopus onion package paintbrush palette panda pants paperclip
    parachute passport peach peanut pear pen pencil piano pig piggy_bank pill pineapple planet plug
    potato printer projector pumpkin purse puzzle rabbit radio refrigerator ribbon robot ruler
    sandwich satellite saw saxophone scarf scooter screwdriver sheep shell shield shoe shovel shower
    snail snake snowflake snowman soap sock sofa spider spoon squirrel stapler stethoscope strawberry suitcase
    sunglasses swimsuit sword syringe table tank teapot teddy_bear telescope television tennis tent test_tube
    thermometer ticket tiger toilet tomato tongue toolbox tooth toothbrush toothpaste tornado tractor trash trousers
    trumpet turtle tv ufo vase video_camera violin virus volcano volleyball wallet washing_machine
    watermelon wheelchair whistle wind wine window wrench yarn yo_yo zebra
    avocado badminton bowling bra brain briefs cherries coconut crocodile croissant deer eggplant firework
    flashlight fountain garlic hippo jellyfish kangaroo kiwi koala lobster lollipop motorcycle
    noodles pancake pretzel raccoon rhinoceros rice ruler_triangle sausage scorpion shrimp
    skateboard sled sleigh snowboard sushi taco tambourine toaster tripod worm bat bee bear""".replace(
        "\n", " "
    ).split()
)
NEAR_CLASSES = tuple(name.replace("_", " ") for name in NEAR_CLASSES)

# Abstract interface signs: far OOD.
SIGN_WORDS = frozenset(
    """arrow arrows chevron chevrons caret carets align border close cancel check checkmark checkbox plus minus add
    divide equal equals menu more sort filter undo redo refresh reload sync rotate zoom maximize minimize expand
    collapse fullscreen grid rows columns layout crop move resize cursor pointer bluetooth wifi signal rss hash
    hashtag percent percentage asterisk infinity play pause stop forward rewind skip repeat shuffle download
    upload share link unlink wifi power info information question exclamation warning alert help toggle switch
    slider sliders circle square triangle rectangle hexagon pentagon octagon loader spinner code braces brackets
    italic underline bold strikethrough heading paragraph indent outdent quote list text export import subscript
    superscript ban block flip merge split corner radio dots ellipsis""".split()
)

# No picture whose name mentions one of these words, whatever else it shows, may serve as OOD.
ID_WORDS: frozenset[str] = frozenset(
    word for name, others in ID_CLASSES.items() for phrase in (name, *others) for word in phrase.split()
) - frozenset(
    """and of with black white red blue green yellow orange purple brown simple alt small medium side front open
    closed single double side full shape bright dim high hot tool face head first last quarter half one two three
    four five six seven eight nine ten eleven twelve suit nose speed time circle cup light slice space winner
    award champion beach royal king queen passenger tropical electric acoustic delivery shopping cutting fast
    vertical horizontal folded ring ringing calling active smile angle large minimalistic straight profile sport
    race police hour afternoon landing takeoff departure arrival tilt regional red fruit photo retro hot tea t
    trailer""".split()
)
# Words that name an ID class too, or a thing that contains one, beside the synonyms above.
ID_WORDS |= frozenset(
    """homes houses housing mailbox mailing envelopes cats dogs birds fishes trees forest flowers roses hearts stars
    suns moons lunar solar sunrise sunset clocks oclock alarm watch timer stopwatch telephones phones mobile
    smartphone cars vehicle suv van taxi ambulance buses trucks trains tram metro subway monorail boats ships
    yacht sailing airplanes planes flight flights airport fires burning campfire bonfire leafs plant umbrellas
    crowns trophies cups mugs cafe beverage espresso doors doorbell beds bedroom bulbs lamps lamp lightbulbs bells
    reindeer rockets bicycles cyclist cycling biking bikes skulls skeleton pirate halloween guitars scissors cakes
    cupcake pizzas hammers gavel mallet shirts polo jersey apples cameras camcorder dslr carts night day weather
    favorite like love trolley launch cycle call logo romance valentine""".split()
)

STYLES = ("outline", "filled", "duotone")
