/** What Cloud Hypervisor is asked over its API (its OpenAPI document, version 0.3.0, which both of the supported versions carry). */
import path from 'node:path'
import { pollUntil } from '../../host/poll-until.ts'
import { connectTo } from '../../host/unix-socket.ts'
import type { Step } from '../../lib/step.ts'
import { VmmApi, VmmRefusal, type VmmRequest } from '../vmm-api.ts'

export const API_SOCKET = 'api.sock'

/** Of `VmInfo.state`. */
export type MachineState = 'Created' | 'Running' | 'Shutdown' | 'Paused' | 'BreakPoint'

const ROOT = '/api/v1'
/** Each request as the document has it; those without a body have none there either. */
export const REQUESTS = {
  info: (): VmmRequest => ({ method: 'GET', path: `${ROOT}/vm.info` }),
  pause: (): VmmRequest => ({ method: 'PUT', path: `${ROOT}/vm.pause` }),
  resume: (): VmmRequest => ({ method: 'PUT', path: `${ROOT}/vm.resume` }),
  powerButton: (): VmmRequest => ({ method: 'PUT', path: `${ROOT}/vm.power-button` }),
  snapshot: (destinationUrl: string): VmmRequest => ({
    method: 'PUT',
    path: `${ROOT}/vm.snapshot`,
    body: { destination_url: destinationUrl },
  }),
} as const

export class Control {
  readonly #api: VmmApi

  constructor(runDir: () => string) {
    this.#api = new VmmApi((step) => connectTo(path.join(runDir(), API_SOCKET), step))
  }

  /** Undefined before there is a machine. */
  async state(step: Pick<Step, 'signal'>): Promise<MachineState | undefined> {
    try {
      const info = await this.#api.ask(REQUESTS.info(), step)
      return typeof info === 'object' && info !== null && 'state' in info ? (info.state as MachineState) : undefined
    } catch (error) {
      if (error instanceof VmmRefusal) return undefined
      throw error
    }
  }

  /** It makes its machine by itself, from its arguments, and answers meanwhile. */
  async reach(wanted: MachineState, step: Pick<Step, 'signal'>): Promise<void> {
    await pollUntil(`the VM to be ${wanted}`, async () => (await this.state(step)) === wanted, step)
  }

  /** Repeat is harmless. */
  async pause(step: Pick<Step, 'signal'>): Promise<void> {
    await this.#become('Paused', REQUESTS.pause(), step)
  }

  /** Repeat is harmless. */
  async resume(step: Pick<Step, 'signal'>): Promise<void> {
    await this.#become('Running', REQUESTS.resume(), step)
  }

  async powerButton(step: Pick<Step, 'signal'>): Promise<void> {
    await this.#api.ask(REQUESTS.powerButton(), step)
  }

  /** Throws `VmmRefusal` when it cannot write a part of it. */
  async snapshot(destinationUrl: string, step: Pick<Step, 'signal'>): Promise<void> {
    await this.#api.ask(REQUESTS.snapshot(destinationUrl), step)
  }

  /** It refuses to become what it is. */
  async #become(wanted: MachineState, request: VmmRequest, step: Pick<Step, 'signal'>): Promise<void> {
    try {
      await this.#api.ask(request, step)
    } catch (error) {
      if (!(error instanceof VmmRefusal) || (await this.state(step)) !== wanted) throw error
    }
  }
}
