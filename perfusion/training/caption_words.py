"""The words of `perfusion.training.captions`: what people photograph and paint, where, when and how."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.replace("\n", " ").split(",") if word.strip())


PEOPLE = _words("""
man, woman, boy, girl, child, baby, toddler, teenager, old man, old woman, young woman, young man,
grandmother, grandfather, mother, father, farmer, fisherman, chef, waiter, baker, carpenter, blacksmith,
painter, sculptor, musician, guitarist, violinist, pianist, drummer, singer, dancer, ballerina, actor,
clown, magician, wizard, witch, knight, samurai, pirate, king, queen, princess, soldier, sailor, pilot,
astronaut, scientist, doctor, nurse, surgeon, teacher, student, librarian, mechanic, plumber, gardener,
florist, tailor, barber, photographer, journalist, detective, police officer, firefighter, athlete, runner,
swimmer, surfer, skier, skateboarder, cyclist, boxer, climber, hiker, tourist, monk, nun, cowboy,
businessman, bride, groom, couple, shepherd, beekeeper, potter, weaver, robot, cyborg, ghost, mermaid, elf,
dwarf
""")

ANIMALS = _words("""
cat, kitten, dog, puppy, horse, foal, cow, calf, bull, pig, piglet, goat, sheep, lamb, donkey, rabbit, hare,
hamster, guinea pig, mouse, rat, squirrel, chipmunk, hedgehog, fox, wolf, bear, polar bear, panda, red
panda, koala, kangaroo, lion, lioness, tiger, leopard, cheetah, panther, elephant, rhinoceros, hippopotamus,
giraffe, zebra, camel, llama, alpaca, deer, stag, moose, reindeer, bison, monkey, gorilla, chimpanzee,
orangutan, lemur, sloth, raccoon, badger, otter, beaver, seal, walrus, dolphin, whale, shark, octopus,
jellyfish, crab, lobster, starfish, goldfish, salmon, seahorse, turtle, tortoise, crocodile, lizard,
chameleon, iguana, snake, frog, toad, salamander, eagle, hawk, falcon, owl, parrot, macaw, toucan, peacock,
flamingo, swan, goose, duck, duckling, chicken, rooster, turkey, pigeon, dove, sparrow, robin, crow, raven,
seagull, pelican, penguin, heron, hummingbird, kingfisher, woodpecker, ostrich, bee, wasp, butterfly, moth,
dragonfly, ladybug, beetle, ant, spider, snail, bulldog, poodle, corgi, dachshund, labrador, husky, terrier,
tabby cat, siamese cat, dragon, unicorn, dinosaur
""")

THINGS = _words("""
chair, armchair, sofa, table, desk, bench, stool, bed, lamp, lantern, candle, chandelier, mirror, clock,
pocket watch, wristwatch, alarm clock, vase, bowl, plate, cup, mug, teapot, kettle, coffee pot, glass, wine
glass, bottle, jar, pitcher, spoon, fork, knife, pan, pot, basket, box, chest, suitcase, backpack, handbag,
wallet, purse, umbrella, hat, cap, helmet, crown, scarf, glove, shoe, boot, sneaker, sandal, dress, shirt,
t-shirt, jacket, coat, sweater, tie, ring, necklace, bracelet, book, notebook, newspaper, letter, envelope,
map, globe, pen, pencil, paintbrush, typewriter, telephone, smartphone, laptop, computer, keyboard, monitor,
television, radio, record player, camera, tripod, telescope, microscope, violin, guitar, piano, cello,
trumpet, saxophone, flute, drum, harp, accordion, ball, basketball, football, tennis racket, skateboard,
surfboard, kite, balloon, teddy bear, doll, toy car, toy train, puzzle, chess board, playing card, dice,
key, lock, hammer, screwdriver, saw, axe, shovel, wheelbarrow, ladder, rope, chain, anchor, compass, sword,
shield, flag, statue, sculpture, painting, poster, sign, street lamp, mailbox, fire hydrant, traffic light,
bicycle, tricycle, scooter, motorcycle, car, sports car, vintage car, taxi, truck, pickup truck, bus, school
bus, van, tractor, train, steam locomotive, tram, boat, sailboat, rowing boat, canoe, ship, yacht,
submarine, airplane, helicopter, hot air balloon, rocket, spaceship, satellite, drone, carriage, wagon,
stroller, wheelchair, pillow, blanket, carpet, curtain, towel, bar of soap, toothbrush, hairbrush, perfume
bottle, lipstick, figurine, snow globe, music box, action figure, piggy bank, birdcage, flower pot, watering
can, bird house, dog bed, sunglasses case, calculator, stapler, thermos, lunch box, trophy, medal
""")

FOODS = _words("""
apple, orange, banana, pear, peach, lemon, lime, mango, pineapple, watermelon, strawberry, cherry, tomato,
potato, carrot, onion, pumpkin, pepper, mushroom, avocado, sandwich, hamburger, hot dog, pizza, taco,
burrito, omelette, pancake, waffle, croissant, bagel, pretzel, baguette, muffin, cupcake, birthday cake,
chocolate cake, cheesecake, apple pie, donut, cookie, bowl of soup, bowl of ramen, bowl of rice, plate of
spaghetti, plate of sushi, salad, steak, fried egg, roast chicken, cup of coffee, cup of tea, glass of
juice, glass of milk, milkshake, ice cream cone, chocolate bar, lollipop, cheese board, fruit basket, loaf
of bread, jar of honey
""")

BUILDINGS = _words("""
house, cottage, cabin, log cabin, farmhouse, barn, mansion, villa, castle, palace, tower, lighthouse,
windmill, church, cathedral, chapel, monastery, temple, pagoda, mosque, synagogue, skyscraper, apartment
building, hotel, hospital, school, library, museum, theater, cinema, train station, airport, factory,
warehouse, gas station, restaurant, cafe, bakery, bookshop, flower shop, market stall, bridge, suspension
bridge, stone bridge, tunnel, dam, fountain, staircase, gate, door, window, balcony, rooftop, courtyard,
greenhouse, gazebo, swimming pool, stadium, playground, phone booth, bus stop, pier, tent, igloo, treehouse,
ruin, pyramid, monument, living room, bedroom, kitchen, bathroom, dining room, office, classroom,
laboratory, workshop, garage, attic, cellar, hallway
""")

NATURE = _words("""
tree, oak tree, pine tree, palm tree, cherry tree, willow, bonsai, bush, hedge, fern, cactus, flower, rose,
tulip, daisy, sunflower, orchid, lily, poppy, lotus, dandelion, leaf, branch, log, rock, boulder, cliff,
cave, canyon, mountain, hill, valley, volcano, glacier, iceberg, river, stream, waterfall, lake, pond,
swamp, island, beach, sand dune, desert, meadow, forest, jungle, rainforest, garden, orchard, vineyard,
wheat field, lavender field, rainbow, cloud, thunderstorm, tornado, wave, coral reef, sunset, sunrise, moon,
planet, galaxy, comet, snowman, snowflake, campfire, seashell, mushroom
""")

PLACES = _words("""
on a beach, on the grass, in a garden, in a park, in a forest, in the snow, on a snowy mountain, on a hill,
in a meadow, in a field of flowers, in the desert, in a jungle, by a river, by a lake, next to a waterfall,
under a tree, under a bridge, on a bridge, on a road, on a dirt road, on a city street, in a narrow alley,
on a sidewalk, at a bus stop, in a parking lot, at a market, in a village, in a small town, in a big city,
in front of a brick wall, in front of a white wall, against a blue sky, against a plain background, on a
white background, on a black background, on a wooden table, on a marble counter, on a shelf, on a
windowsill, on a carpet, on the floor, on a sofa, on a bed, on a chair, on a bench, in a kitchen, in a
living room, in a bedroom, in a bathroom, in an office, in a library, in a classroom, in a museum, in a
workshop, in a studio, in a cafe, in a restaurant, in a bar, on a train, on a boat, in a car, in the water,
underwater, on the moon, in space, among the clouds, in the rain, in the fog, near a lighthouse, near a
castle, in front of a church, in front of an old house, behind a fence, in a basket, in a box, in a glass
jar, in a shop window, on a rooftop, on a balcony, on a staircase, at the edge of a cliff, in a cave, in a
swamp, by a campfire, at the seaside, in a harbor, on a pier, in a barn, on a farm, in a greenhouse, in a
vineyard, at a festival, at a wedding, at a birthday party, in a stadium, on a stage, at the zoo, in paris,
in tokyo, in new york, in london, in venice, in the mountains, in the countryside
""")

PEOPLE_ACTIONS = _words("""
walking, running, sitting, standing, sleeping, reading a book, writing a letter, drinking coffee, eating an
apple, cooking dinner, painting a picture, playing the guitar, playing chess, riding a bicycle, riding a
horse, driving a car, holding an umbrella, holding a balloon, carrying a basket, looking at the camera,
looking out of the window, waving, smiling, laughing, crying, dancing, singing, jumping, climbing, swimming,
fishing, feeding the birds, walking a dog, taking a photograph, talking on the phone, working on a laptop,
repairing a clock, wearing a red hat, wearing a long coat, wearing glasses, wearing a suit, waiting,
pointing at the sky, lying down, kneeling, stretching, playing football, throwing a ball
""")

ANIMAL_ACTIONS = _words("""
sleeping, sitting, standing, running, walking, jumping, eating, drinking water, playing with a ball, looking
at the camera, looking up, looking away, hiding, resting, swimming, lying down, stretching, yawning, wearing
a hat, wearing a scarf, chasing a butterfly, climbing, carrying a stick, waiting, rolling around, watching
the birds, wearing sunglasses
""")

COLOURS = _words("""
red, orange, yellow, green, blue, purple, pink, brown, black, white, gray, golden, silver, turquoise, dark
blue, light green, pale pink, crimson, beige, ivory, striped, spotted, black and white, red and white,
colorful, rainbow colored
""")

MATERIALS = _words("""
wooden, metal, glass, plastic, stone, ceramic, porcelain, leather, paper, cardboard, knitted, woolen, silk,
velvet, marble, bronze, copper, brass, crystal, clay, rusty, brick, concrete, bamboo, rubber
""")

QUALITIES = _words("""
small, large, big, tiny, huge, old, new, ancient, modern, beautiful, ugly, cute, strange, broken, shiny,
dusty, dirty, clean, elegant, simple, ornate, expensive, cheap, soft, heavy, round, square, tall, long,
antique, futuristic, vintage, handmade, realistic, lonely, famous, traditional, empty, mysterious, delicate,
wet, fluffy, happy, sad, sleepy, angry
""")

LIGHTS = _words("""
at night, at sunset, at sunrise, at noon, in the evening, in the morning light, in soft light, in bright
sunlight, by candlelight, under neon lights, with dramatic lighting, with long shadows, in golden hour
light, in moonlight, under a cloudy sky, on a rainy day, on a sunny day, in winter, in spring, in summer, in
autumn, with a blurred background, backlit, with studio lighting, in dim light, during a storm, under the
stars
""")

STYLES = _words("""
oil painting, watercolor painting, pencil drawing, charcoal sketch, ink drawing, cartoon, comic, anime
drawing, digital painting, 3d render, pixel art picture, woodcut, engraving, tile mosaic, stained glass
window, pastel drawing, children's book illustration, vintage poster, old photograph, polaroid, black and
white photo, marble sculpture, paper cutout, embroidery, low poly render, concept art piece, graffiti mural,
fresco, impressionist painting, cubist painting, tattoo design, sticker, logo, blueprint, clay model,
origami figure
""")

SHOTS = _words("""
photo, photograph, picture, close-up photo, close up, macro shot, portrait, wide shot, aerial view, side
view, front view, top view, snapshot, studio photo, low angle shot, blurry photo, good photo, bright photo,
dark photo, cropped photo, detailed photo, professional photo, film still, image, view, candid photo
""")

ARTISTS = _words("""
van gogh, monet, rembrandt, picasso, hokusai, klimt, vermeer, turner, matisse, kandinsky, an unknown master,
a child
""")

TAGS = _words("""
highly detailed, sharp focus, 4k, 8k, masterpiece, intricate, cinematic, cinematic lighting, soft focus,
bokeh, trending on a gallery site, best quality, minimalist, realistic, photorealistic, dreamy, moody,
vibrant colors, muted colors, pastel colors, high contrast, symmetrical, full body, no people, centered,
depth of field, award winning, 35mm, 50mm lens, film grain, hdr, volumetric light, elegant, fantasy,
steampunk, cyberpunk, retro, art deco, surreal, abstract, isometric, ultra wide angle
""")

RELATIONS = _words("""
next to, in front of, behind, beside, under, above, near, on top of, to the left of, to the right of, and,
with, facing, surrounded by flowers and
""")

COUNTS = _words("two, three, four, five, six, several, many, a pair of, a group of, a few, a dozen")
