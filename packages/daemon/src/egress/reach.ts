/**
 * Where a proxy goes for its guest: no further than the guest could by itself. A name is judged by the address that is really connected to,
 * at the moment of connecting: one that resolves to another the second time gains nothing.
 */
import { lookup as dnsLookup, type LookupAddress } from 'node:dns'
import { isIP, type LookupFunction } from 'node:net'

/** May the guest go there? */
export type MayReach = (address: string) => boolean

export class Unreachable extends Error {
  readonly code = 'EACCES'
}

/** Throws Unreachable for an address that is closed; a name is judged when it is looked up. `host` without brackets. */
export function assertReachable(host: string, mayReach: MayReach): void {
  if (isIP(host) !== 0 && !mayReach(host)) throw new Unreachable(`${host} is closed to instances`)
}

/** For sockets: gives those addresses of a name that are open, and fails with Unreachable when all are closed. */
export function lookupOf(mayReach: MayReach, lookup: typeof dnsLookup = dnsLookup): LookupFunction {
  return (hostname, options, callback) => {
    lookup(hostname, { ...options, all: true }, (error, addresses: LookupAddress[]) => {
      if (error) return callback(error, '', 0)
      const open = addresses.filter(({ address }) => mayReach(address))
      const [first] = open
      if (first === undefined) return callback(new Unreachable(`${hostname} is at an address that is closed to instances`), '', 0)
      return options.all ? callback(null, open) : callback(null, first.address, first.family)
    })
  }
}
