import { AppError } from '@dormouse/api/errors.ts'
import type { WebSocket } from '@fastify/websocket'
import type { FastifyRequest } from 'fastify'
import type { InstanceId } from '../instances/instance.ts'
import { type Authority, hostCaller } from './auth.ts'
import { copyFiles } from './cp.ts'
import { runExec } from './exec.ts'
import type { GuestDoor, ServerUses } from './uses.ts'
import { WebSocketPeer } from './web-socket-peer.ts'

const CONNECTIONS_MAX = 512
const CONNECT_LIMIT_MS = 15_000

export type WebSocketRouteId = 'execInstance' | 'copyInstanceFiles'

/** The way to exec and cp. Everything that can be refused is refused before the upgrade, as an answer with a status. */
export class WebSocketGate {
  readonly #uses: Pick<ServerUses, 'instances' | 'autoStandby' | 'log'>
  readonly #authority: Pick<Authority, 'watch'>
  readonly #closing: AbortSignal
  readonly #guests = new WeakMap<FastifyRequest, { readonly guest: GuestDoor; readonly instance: InstanceId }>()
  #open = 0

  constructor(uses: Pick<ServerUses, 'instances' | 'autoStandby' | 'log'>, authority: Pick<Authority, 'watch'>, closing: AbortSignal) {
    this.#uses = uses
    this.#authority = authority
    this.#closing = closing
  }

  async admit(request: FastifyRequest, id: WebSocketRouteId): Promise<void> {
    if (!request.ws) return
    if (this.#open >= CONNECTIONS_MAX) throw new AppError('rate_limited', `${CONNECTIONS_MAX} commands and copies are under way already`)
    const { instances } = this.#uses
    const log = this.#logOf(request)
    const instance = instances.resolve((request.params as { id: string }).id)
    const signal = AbortSignal.any([this.#closing, AbortSignal.timeout(CONNECT_LIMIT_MS)])
    const operation = id === 'execInstance' ? 'exec' : 'copy'
    this.#guests.set(request, { guest: await instances.guest(instance.id, { signal, log }, operation), instance: instance.id })
    log.debug({ instance: instance.id, route: id }, 'websocket opened')
  }

  async serve(socket: WebSocket, request: FastifyRequest, id: WebSocketRouteId): Promise<void> {
    // Before anything is awaited: a first frame may be here already.
    const peer = new WebSocketPeer(socket)
    const admitted = this.#guests.get(request)
    if (!admitted) return peer.close(1011, 'not admitted')
    const { guest, instance } = admitted
    this.#open++
    // What a token has opened ends with it.
    using token = this.#authority.watch(request.caller ?? hostCaller)
    using _awake = this.#uses.autoStandby.beginSession(instance)
    try {
      const uses = { guest, log: this.#logOf(request), closing: AbortSignal.any([this.#closing, token.signal]) }
      await (id === 'execInstance' ? runExec(peer, uses) : copyFiles(peer, uses))
    } finally {
      this.#open--
    }
  }

  #logOf(request: FastifyRequest): ServerUses['log'] {
    return this.#uses.log.child({ requestId: request.id })
  }
}
