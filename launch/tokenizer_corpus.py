"""Training sentences of the built-in tokenizer.

Scene descriptions composed from lists of common words, so that frequent words
of video captions become single pieces. See models/assets/README.md.
"""

import random

# Words for each slot of a template; "_" is a space.
SLOTS = {
  "colour": """
      red green blue yellow orange purple pink cyan magenta white black grey
      gray brown golden silver""",
  "shape": """
      circle square triangle star ring cross diamond heart ball disc dot line
      rectangle ellipse arrow cube box hexagon""",
  "adjective": """
      big small large tiny little huge round tall short long old young new
      bright dark light fast slow happy sad beautiful wooden cute fluffy wild
      hungry wet dry warm cold hot empty quiet busy clear deep soft modern
      ancient colorful striped shiny""",
  "motion": """
      moves circles bounces spins grows shrinks blinks swings turns rotates
      slides rises falls drifts rolls jumps shakes floats stands zigzags
      fades""",
  "direction": """
      left right up down forward backward around away back_and_forth
      from_left_to_right from_right_to_left to_the_left to_the_right in_place
      upwards downwards across_the_screen still apart together
      from_top_to_bottom out_of_the_frame into_the_frame toward_the_camera
      through_the_air""",
  "manner": """
      slowly quickly gently smoothly suddenly twice again once fast steadily
      softly""",
  "person": """
      person man woman child boy girl baby chef dancer student teacher doctor
      friend family mother father sister brother king queen astronaut athlete
      player swimmer musician painter pirate knight robot couple crowd group""",
  "animal": """
      dog cat horse bird fish rabbit bear lion tiger elephant panda monkey mouse
      cow sheep pig goat duck chicken owl eagle butterfly bee turtle frog snake
      dolphin whale shark penguin fox wolf deer squirrel raccoon giraffe zebra
      puppy kitten dragon dinosaur octopus teddy""",
  "thing": """
      car bus truck train bicycle bike motorcycle plane airplane boat ship
      rocket balloon kite table chair house bridge tower castle door window lamp
      candle fire flower tree leaf rose apple banana cake pizza bread coffee tea
      cup glass bottle book phone camera computer piano guitar violin drum hat
      dress umbrella clock sword ball toy bag box sign wheel rope skateboard
      surfboard flag cookie egg soup milk water""",
  "action": """
      walks runs dances sits stands sleeps eats drinks swims flies jumps plays
      sings smiles laughs waves reads writes cooks paints rides drives climbs
      talks looks watches holds throws catches kicks opens closes washes cuts
      brushes stretches yawns surfs skates skis claps cries works waits hugs
      chases barks lifts pushes pulls pours hides shows""",
  "doing": """
      walking running dancing sitting standing sleeping eating drinking swimming
      flying jumping playing singing smiling laughing waving reading writing
      cooking painting riding driving climbing talking looking watching holding
      throwing catching wearing moving spinning floating burning melting
      blooming growing falling rising shining exploring training making doing
      performing shooting""",
  "place": """
      beach forest city street park garden house room kitchen mountain mountains
      river lake ocean sea desert field meadow sky space moon road school
      library stage farm village jungle island cave snow grass pool office
      market station floor wall hill valley waterfall background""",
  "time": """
      morning evening night day sunset sunrise winter summer autumn spring noon
      dawn""",
  "weather": """
      rain snow sun wind fog clouds storm thunder lightning smoke fireworks
      stars leaves sunlight sand waves mist""",
  "style": """
      cartoon painting drawing sketch watercolor sticker photo animation film
      movie anime sculpture origami""",
  "sign": """
      again bird book brother eat help hungry learn milk night no please school
      sister sorry student thanks walk want yes hello good bad more stop go come
      home work love like name friend water food thank you what where who when
      why how today tomorrow yesterday time year finish drink sleep play read
      write deaf hearing understand know think see need have can will""",
  "number": """
      two three four five six seven eight nine ten many several few some both
      all other""",
  "plural": """
      people men women children dogs cats horses birds fish circles squares
      triangles balls cars trees flowers friends hands eyes clouds stars lights
      words colors players butterflies balloons""",
  "sport": """
      football basketball baseball tennis golf soccer volleyball hockey music
      chess cards games bowling yoga boxing""",
}

TEMPLATES = (
  "a {colour} {shape} {motion} {direction}",
  "a {colour} {shape} {motion} {manner} on a {colour2} background",
  "a {adjective} {colour} {shape} {motion} {direction} {manner}",
  "the {colour} {shape} {motion} and then {motion2} {direction}",
  "a {colour} {shape} and a {colour2} {shape2} {motion3} {direction}",
  "{number} {colour} {plural} {doing} in the {place}",
  "a person signs the word {sign} in sign language",
  "a person is making the sign for {sign}",
  "a {adjective} {animal} {action} in the {place} at {time}",
  "an {animal} {action} near the {thing} with a {person}",
  "a {person} {action} while the {person2} is {doing} behind the {thing}",
  "a {adjective} {person} with a {colour} {thing} {action} by the {place}",
  "{weather} over the {place} in the {time}, seen from above",
  "a {style} of a {adjective} {animal} {doing} on the {place}",
  "a {person} {doing}, in the style of a {colour} {style}",
  "the camera {motion} {manner} over a {adjective} {place} as {weather} falls",
  "a {colour} {thing} on a {adjective} {thing2} under the {weather}",
  "{number} {plural} are {doing} next to {number2} {adjective} {plural2}",
  "close up of a {colour} {thing}, {adjective} {weather}, high quality video",
  "a {animal} is wearing a {colour} {thing} and {doing} at the {place}",
  "it is {time} and there is {weather} outside of the {place}",
  "their {thing} was between his {thing2} and her {adjective} {animal}",
  "this {animal} {action} for its {person}, one by one, up to that {thing}",
  "a {person} playing {sport} inside a {adjective} {place} during {time}",
  "an {person} {doing} without {sport} but not using the {thing}",
  "time lapse of {weather} above the {place}, wide aerial view, 4k",
  "filmed from below, the {thing} {motion} along the {place} into the {place2}",
  "slow motion shot of a {thing} full of {weather} against a {colour} {place}",
)


def _lists() -> dict[str, list[str]]:
  lists = {
    slot: [entry.replace("_", " ") for entry in text.split()]
    for slot, text in SLOTS.items()
  }
  twice = "colour shape motion person thing place number plural"
  # Verbs for more than one subject: "moves" -> "move".
  plain = {"motion3": [m.removesuffix("s") for m in lists["motion"]]}
  return lists | plain | {f"{slot}2": lists[slot] for slot in twice.split()}


def words() -> set[str]:
  """All words of the slots."""
  return {
    w for entries in _lists().values() for e in entries for w in e.split()
  }


def sentences(rounds: int = 400, seed: int = 0) -> list[str]:
  """Fills every template `rounds` times; deterministic.

  Words are drawn in shuffled order without replacement, so that none is rare;
  every fourth round has capital letters and full stops.
  """
  rng = random.Random(seed)
  lists, decks = _lists(), {}

  def draw(slot: str) -> str:
    if not decks.get(slot):
      decks[slot] = rng.sample(lists[slot], len(lists[slot]))
    return decks[slot].pop()

  drawn = []
  for i in range(rounds):
    for template in TEMPLATES:
      if i % 4 == 3:
        template = f"{template[0].upper()}{template[1:]}."
      drawn.append(template.format_map({n: draw(n) for n in lists}))
  fixed = {w for t in TEMPLATES for w in t.split() if w.isalpha()}
  fixed |= {t.split()[0].capitalize() for t in TEMPLATES if t[0] != "{"}
  # The trainer only considers pieces that occur in two different words, such as
  # "red" in "red," and "red.".
  drawn += [f"{w}, {w}." for w in sorted(words() | fixed)] * (rounds // 4)
  # Single characters, so that names and numbers need no byte fallback.
  characters = map(chr, range(ord("!"), ord("~") + 1))
  return drawn + [c for c in characters for _ in range(8)]
