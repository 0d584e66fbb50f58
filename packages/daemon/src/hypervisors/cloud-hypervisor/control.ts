/** What Cloud Hypervisor is asked over its API. */
import path from 'node:path'
import { pollUntil } from '../../host/poll-until.ts'
import { connectTo } from '../../host/unix-socket.ts'
import type { Step } from '../../lib/step.ts'
import { VmmApi, VmmRefusal, type VmmRequest } from '../vmm-api.ts'
import { type Answers, PUBLISHED, type RequestBodies } from './published-api.ts'

export const API_SOCKET = 'api.sock'

export type MachineState = Answers['/vm.info']['state']

/** The two that are not in the documents say: one request after another. */
export type PluggedDisk = RequestBodies['/vm.add-disk'] & {
  readonly id: string
  readonly disable_io_uring?: true
  readonly disable_aio?: true
}

/** Of `VmInfo`, what is known of its devices. */
export interface MachineDevices {
  /** The disks that it is to have, by their serials: the names of their devices. */
  readonly disks: ReadonlyMap<string, string>
  /** Devices that its guest has not let go of. */
  readonly present: ReadonlySet<string>
  readonly rateGroups: ReadonlySet<string>
}

export const REQUESTS = {
  info: () => request('/vm.info', undefined),
  pause: () => request('/vm.pause', undefined),
  resume: () => request('/vm.resume', undefined),
  powerButton: () => request('/vm.power-button', undefined),
  addDisk: (disk: PluggedDisk) => request('/vm.add-disk', disk),
  removeDevice: (id: string) => request('/vm.remove-device', { id }),
  resizeDisk: (id: string, bytes: number) => request('/vm.resize-disk', { id, desired_size: bytes }),
  snapshot: (destinationUrl: string) => request('/vm.snapshot', { destination_url: destinationUrl }),
} as const

function request<P extends keyof RequestBodies>(path: P, body: RequestBodies[P]): VmmRequest {
  const { method } = PUBLISHED.requests[path]
  return { method, path: `${PUBLISHED.server}${path}`, ...(body === undefined ? {} : { body }) }
}

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

  /** Throws `VmmRefusal` when it cannot have the disk. Its guest meets it later. */
  async addDisk(disk: PluggedDisk, step: Pick<Step, 'signal'>): Promise<void> {
    await this.#api.ask(REQUESTS.addDisk(disk), step)
  }

  /** Its guest is asked to let go of it, and may take its time. */
  async removeDevice(id: string, step: Pick<Step, 'signal'>): Promise<void> {
    await this.#api.ask(REQUESTS.removeDevice(id), step)
  }

  /** The file becomes as large, and its guest is told. Repeat is harmless. */
  async resizeDisk(id: string, bytes: number, step: Pick<Step, 'signal'>): Promise<void> {
    await this.#api.ask(REQUESTS.resizeDisk(id, bytes), step)
  }

  async devices(step: Pick<Step, 'signal'>): Promise<MachineDevices> {
    return devicesIn(await this.#api.ask(REQUESTS.info(), step))
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

/** A VMM that was taken over may say anything. */
function devicesIn(info: unknown): MachineDevices {
  const { config, device_tree: tree } = asObject(info)
  const { disks, rate_limit_groups: groups } = asObject(config)
  return {
    disks: new Map(objectsIn(disks).map(({ serial, id }) => [String(serial), String(id)])),
    present: new Set(Object.keys(asObject(tree))),
    rateGroups: new Set(objectsIn(groups).map(({ id }) => String(id))),
  }
}

const objectsIn = (list: unknown): Readonly<Record<string, unknown>>[] => (Array.isArray(list) ? list : []).map(asObject)

const asObject = (value: unknown): Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null ? (value as Readonly<Record<string, unknown>>) : {}
