/** The API as commands use it: the typed client of the contract, over the transport of `connect.ts`. */
import { Client } from '@dormouse/api/client.ts'
import { type Address, connectionFailure, daemonAddress, fetchOver } from './connect.ts'
import { environment } from './environment.ts'

export type { Answer } from '@dormouse/api/client.ts'

/** What every command's options carry. */
export interface HostOption {
  readonly host?: string
}

export class Daemon extends Client {
  readonly address: Address

  constructor(address: Address) {
    const token = environment.token()
    // The client joins the paths of the API to this; where it leads is the transport's to know.
    super({ baseUrl: '', fetch: fetchOver(address), ...(token !== undefined && address.kind === 'tcp' && { token }) })
    this.address = address
  }

  /** A stream that ends without an error when its caller lets go of it, and says in one sentence when the daemon does. */
  async *follow<T>(messages: AsyncIterable<T>, signal?: AbortSignal): AsyncGenerator<T, void, undefined> {
    try {
      yield* messages
    } catch (error) {
      if (!signal?.aborted) throw connectionFailure(this.address, error)
    }
  }
}

/** The daemon that the options and the environment name. Nothing is dialled yet. */
export const connect = (options: HostOption): Daemon => new Daemon(daemonAddress(options.host))
