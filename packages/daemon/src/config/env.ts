/** The only file that reads the environment. */
export type Env = Readonly<Record<string, string | undefined>>

const PREFIX = 'DORMOUSE_'

/** The settings among the environment's variables, by name without the prefix. Empty ones count as unset. */
export function readEnv(env: Env = process.env): ReadonlyMap<string, string> {
  const settings = new Map<string, string>()
  for (const [name, value] of Object.entries(env)) {
    if (name.startsWith(PREFIX) && value !== undefined && value !== '') settings.set(name.slice(PREFIX.length), value)
  }
  return settings
}
