/** All that the CLI takes from its environment, read here and nowhere else. */
import { homedir } from 'node:os'

const set = (name: string): string | undefined => {
  const value = process.env[name]
  return value === undefined || value === '' ? undefined : value
}

export const environment = {
  /** Where the daemon is: `unix:///path` or `http://host:port`. */
  host: (): string | undefined => set('DORMOUSE_HOST'),
  /** The bearer token for a daemon that is reached over TCP. */
  token: (): string | undefined => set('DORMOUSE_TOKEN'),
  /** `DORMOUSE_RUN_DIR` moves the daemon's socket; the CLI looks where the daemon would put it. */
  runDir: (): string => set('DORMOUSE_RUN_DIR') ?? '/run/dormouse',
  wantsNoColour: (): boolean => set('NO_COLOR') !== undefined || set('TERM') === 'dumb',
  /** A value for `-e NAME` without one. */
  variable: (name: string): string | undefined => process.env[name],
  terminal: (): string | undefined => set('TERM'),
  home: (): string => set('HOME') ?? homedir(),
  all: (): NodeJS.ProcessEnv => process.env,
}
