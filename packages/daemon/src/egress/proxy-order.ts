/** What the daemon tells the process of a proxy: one line of JSON on its control socket, answered by `ok` or `error WHAT`. */
import type { Mediation } from './mediator.ts'

export interface ProxyOrder {
  readonly mediation: Mediation
  /** The only address that is let in, where others can reach the guest's socket: on a bridge. */
  readonly guestAddress?: string
  /** Guests are here: no way to each other. As `10.100.0.0/16`. */
  readonly closedSubnets: readonly string[]
  /** Guests reach the host at its own addresses. */
  readonly opensHost: boolean
  /** Authorities, in PEM, by whom hosts are verified beside those that Node trusts. */
  readonly trusted: readonly string[]
}

/** Descriptors of the process. */
export const CONTROL_FD = 3
export const GUEST_FD = 4

/** Credentials and hosts are bounded where they are asked for; this is more than they can be. */
export const ORDER_MAX = 4 << 20
