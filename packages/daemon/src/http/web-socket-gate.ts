import { AppError } from '@dormouse/api/errors.ts'
import type { WebSocket } from '@fastify/websocket'
import type { FastifyRequest } from 'fastify'
import type { Instance, InstanceId } from '../instances/instance.ts'
import { type Authority, hostCaller } from './auth.ts'
import { copyFiles } from './cp.ts'
import { runExec } from './exec.ts'
import { FrameRoom } from './frame-room.ts'
import type { GuestDoor, ServerUses } from './uses.ts'
import { WebSocketPeer } from './web-socket-peer.ts'

const CONNECTIONS_MAX = 512
/** So that one instance leaves room for the others. */
const INSTANCE_CONNECTIONS_MAX = 64
const CONNECT_LIMIT_MS = 15_000

interface Admitted {
  readonly guest: GuestDoor
  readonly instance: InstanceId
  readonly awake: Disposable | undefined
}

export type WebSocketRouteId = 'execInstance' | 'copyInstanceFiles'

/** The way to exec and cp. Everything that can be refused is refused before the upgrade, as an answer with a status. */
export class WebSocketGate {
  readonly #uses: Pick<ServerUses, 'instances' | 'autoStandby' | 'log'>
  readonly #authority: Pick<Authority, 'watch'>
  readonly #closing: AbortSignal
  readonly #guests = new WeakMap<FastifyRequest, Admitted>()
  readonly #open = new Map<InstanceId, number>()
  readonly #room = new FrameRoom()

  constructor(uses: Pick<ServerUses, 'instances' | 'autoStandby' | 'log'>, authority: Pick<Authority, 'watch'>, closing: AbortSignal) {
    this.#uses = uses
    this.#authority = authority
    this.#closing = closing
  }

  async admit(request: FastifyRequest, id: WebSocketRouteId): Promise<void> {
    const { instances } = this.#uses
    const log = this.#logOf(request)
    const instance = instances.resolve((request.params as { id: string }).id)
    this.#checkRoom(instance)
    // Counted from here on: the others who are on their way would not be seen otherwise. So is who keeps it awake: between this and the
    // upgrade it must not be put to sleep under a caller who was told that he may.
    if (request.ws) this.#count(instance.id, request)
    const signal = AbortSignal.any([this.#closing, AbortSignal.timeout(CONNECT_LIMIT_MS)])
    const operation = id === 'execInstance' ? 'exec' : 'copy'
    const awake = request.ws ? this.#keepAwake(instance.id, request) : undefined
    try {
      const guest = await instances.guest(instance.id, { signal, log }, operation)
      this.#guests.set(request, { guest, instance: instance.id, awake })
    } catch (error) {
      // Refused, it is no one's.
      awake?.[Symbol.dispose]()
      throw error
    }
    if (request.ws) log.debug({ instance: instance.id, route: id }, 'websocket opened')
  }

  async serve(socket: WebSocket, request: FastifyRequest, id: WebSocketRouteId): Promise<void> {
    const admitted = this.#guests.get(request)
    if (!admitted) return socket.close(1011, 'not admitted')
    const { guest, instance, awake } = admitted
    // Before anything is awaited: a first frame may be here already.
    const peer = new WebSocketPeer(socket, { transport: request.raw.socket, room: this.#room.shareOf(instance) })
    using _ = awake
    // What a token has opened ends with it.
    using token = this.#authority.watch(request.caller ?? hostCaller)
    const uses = { guest, log: this.#logOf(request), closing: AbortSignal.any([this.#closing, token.signal]) }
    await (id === 'execInstance' ? runExec(peer, uses) : copyFiles(peer, uses))
  }

  #checkRoom({ id, name }: Instance): void {
    const all = [...this.#open.values()].reduce((sum, count) => sum + count, 0)
    if (all >= CONNECTIONS_MAX) throw new AppError('rate_limited', `${CONNECTIONS_MAX} commands and copies are under way already`)
    if ((this.#open.get(id) ?? 0) >= INSTANCE_CONNECTIONS_MAX) {
      throw new AppError('rate_limited', `${INSTANCE_CONNECTIONS_MAX} commands and copies are under way in ${name} already`, {
        hint: 'Wait for one of them to end',
      })
    }
  }

  /** Until its connection closes, whatever becomes of the request. */
  #count(id: InstanceId, request: FastifyRequest): void {
    this.#open.set(id, (this.#open.get(id) ?? 0) + 1)
    whenClosed(request, () => {
      const left = (this.#open.get(id) ?? 1) - 1
      if (left > 0) this.#open.set(id, left)
      else this.#open.delete(id)
    })
  }

  /** Until it is disposed of, or its connection closes: who hangs up before the upgrade is never served. */
  #keepAwake(id: InstanceId, request: FastifyRequest): Disposable {
    const awake = this.#uses.autoStandby.beginSession(id)
    whenClosed(request, () => awake[Symbol.dispose]())
    return awake
  }

  #logOf(request: FastifyRequest): ServerUses['log'] {
    return this.#uses.log.child({ requestId: request.id })
  }
}

/** At once where the caller has hung up while it was looked at who asks. */
function whenClosed({ raw: { socket } }: FastifyRequest, then: () => void): void {
  if (socket.closed) then()
  else socket.once('close', then)
}
