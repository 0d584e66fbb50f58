/** All that the CLI takes from its environment, read here and nowhere else. */
import { join } from 'node:path'

const set = (name: string): string | undefined => {
  const value = process.env[name]
  return value === undefined || value === '' ? undefined : value
}

export const environment = {
  /** Where the daemon is: `unix:///path` or `http://host:port`. */
  host: (): string | undefined => set('DORMOUSE_HOST'),
  /** The bearer token for a daemon that is reached over TCP. */
  token: (): string | undefined => set('DORMOUSE_TOKEN'),
  /** Where the daemon puts its socket under the same settings. */
  socket: (): string => set('DORMOUSE_SOCKET') ?? join(set('DORMOUSE_RUN_DIR') ?? '/run/dormouse', 'dormouse.sock'),
  wantsNoColour: (): boolean => set('NO_COLOR') !== undefined || set('TERM') === 'dumb',
  /** A value for `-e NAME` without one. */
  variable: (name: string): string | undefined => process.env[name],
  terminal: (): string | undefined => set('TERM'),
  all: (): NodeJS.ProcessEnv => process.env,
}
