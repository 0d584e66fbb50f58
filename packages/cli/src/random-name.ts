/** A name for an instance that was given none: a mood and a sleeper, such as `drowsy-hedgehog`. */
import { randomInt } from 'node:crypto'

const MOODS =
  'balmy calm cosy curled dozing dreamy drowsy dusky fluffy fuzzy gentle hazy hushed idle lazy lulled mellow misty mossy nestled placid quiet resting serene sleepy slow snoring snug soft still tranquil tucked velvety warm wintry yawning'.split(
    ' ',
  )
const SLEEPERS =
  'badger bat bear beaver bumblebee chipmunk cub dormouse echidna fawn fox frog hamster hare hedgehog jerboa kitten koala ladybird lemur lizard marmot mole newt otter owl panda poorwill possum puppy rabbit raccoon seal skunk sloth snail squirrel swift tenrec toad tortoise turtle vole walrus wombat woodchuck'.split(
    ' ',
  )

const pick = (words: readonly string[], random: (limit: number) => number): string => words[random(words.length)] ?? 'dormouse'

/** Some 1,600 names; `taken` ones of an earlier attempt get a number. */
export function randomName(attempt = 0, random: (limit: number) => number = randomInt): string {
  const name = `${pick(MOODS, random)}-${pick(SLEEPERS, random)}`
  return attempt < 2 ? name : `${name}-${random(10_000)}`
}
