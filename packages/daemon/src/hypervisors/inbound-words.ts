/** How the programs that count connections are asked (shim/net-inbound.c, shim/conntrack.c), and what they answer. Pure. */
import { AppError } from '@dormouse/api/errors.ts'
import type { IgnoredConnections, Inbound } from './hypervisor.ts'

export const ignoredWords = ({ sources, ports }: IgnoredConnections): string[] => [...ports.map(String), ...sources]

/** `ACTIVE MS`, or `0 -`. */
export function parseInbound(text: string): Inbound {
  const [, active, quiet] = /^(\d{1,9}) (-|\d{1,15})$/.exec(text) ?? []
  if (active === undefined || quiet === undefined) {
    throw new AppError('internal_error', `Connections were asked for and the answer was ${JSON.stringify(text.slice(0, 200))}`)
  }
  return { active: Number(active), ...(quiet === '-' ? {} : { quietMs: Number(quiet) }) }
}
