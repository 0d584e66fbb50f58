/**
 * How instances go to sleep and wake: as someone asks for it, by themselves unless someone needs them, or for a moment to give memory back.
 * While one sleeps, its state is consolidated and compressed in the background; a wake ends that first.
 */
import type { BackgroundJobs } from '../lib/background-jobs.ts'
import type { Logger } from '../log.ts'
import { Consolidations } from './consolidations.ts'
import type { HostRoom } from './host-room.ts'
import type { Instance, InstanceId } from './instance.ts'
import type { WorkUses } from './instance-work.ts'
import { restore } from './operations/restore.ts'
import { isKeptAwake, type StandbyOptions, type StayAwake, standby } from './operations/standby.ts'
import type { Admit } from './operations/start.ts'
import { SleepCompressions } from './sleep-compressions.ts'
import { vmSpecOf } from './vm-spec-of.ts'
import type { Workers } from './workers.ts'

export interface SleepsUses {
  readonly work: WorkUses
  readonly workers: Workers
  readonly room: HostRoom
  readonly log: Logger
  /** Where memories are compressed. */
  readonly compressing: BackgroundJobs
  /** 0: as fast as it goes. */
  readonly consolidationBytesPerSecond: number
  readonly admitAgain: Admit
  find(id: InstanceId): Instance | undefined
  /** Throws `not_found`. */
  get(id: InstanceId): Instance
}

export class Sleeps implements AsyncDisposable {
  readonly #uses: SleepsUses
  readonly #consolidations: Consolidations
  readonly #compressions: SleepCompressions
  /** Those that sleep for a moment, to give memory back. */
  readonly #naps = new Map<InstanceId, Promise<void>>()

  constructor(uses: SleepsUses) {
    this.#uses = uses
    const { work, workers, log } = uses
    const jobUses = {
      memory: work.memory,
      paths: work.paths,
      log,
      crashPoint: work.crashPoint,
      find: uses.find,
      perform: workers.perform.bind(workers),
    }
    this.#consolidations = new Consolidations({ ...jobUses, maxBytesPerSecond: uses.consolidationBytesPerSecond })
    this.#compressions = new SleepCompressions({
      ...jobUses,
      jobs: uses.compressing,
      isBaseShared: work.isBaseShared,
      endConsolidation: (id) => this.#consolidations.cancel(id),
    })
  }

  /** Resolves when its memory is on disk and its VM is gone. Options are refused when it sleeps already. */
  async standby(id: InstanceId, options: StandbyOptions = {}): Promise<Instance> {
    // Whoever asks for it is not done with a nap, which is about to end.
    if (!options.wakes) await this.#naps.get(id)?.catch(() => undefined)
    const refuse =
      Object.keys(options).length > 0 ? { refuseAlready: 'it is in standby already, and was compressed as it was asked for then' } : {}
    try {
      await this.#uses.workers.request(id, 'standby', (work) => standby(work, options), refuse)
    } catch (error) {
      // It joined one that no one had asked for, and that gave way to someone: this one was asked for.
      if (isKeptAwake(error)) return this.standby(id, options)
      throw error
    }
    return this.#slept(id)
  }

  /** A standby that no one asked for: `stayAwake` may say no, until it is on record. Refused while another one is under way. */
  async nap(id: InstanceId, stayAwake: StayAwake): Promise<Instance> {
    const refuse = { refuseAlready: 'it is in standby already, or on its way there' }
    await this.#uses.workers.request(id, 'standby', (work) => standby(work, { stayAwake }), refuse)
    return this.#slept(id)
  }

  #slept(id: InstanceId): Instance {
    this.attend(id, () => this.#expectRestore(id))
    return this.#uses.get(id)
  }

  /** Who has just gone to sleep may soon be woken: its driver makes ready for it. */
  #expectRestore(id: InstanceId): void {
    const instance = this.#uses.find(id)
    if (instance?.sleep === undefined) return
    const { images, paths, network, settings, hypervisorOf, isBaseShared } = this.#uses.work
    const image = images.byDigest(instance.imageDigest)
    const { generation, base } = instance.sleep
    if (image === undefined) return
    const spec = vmSpecOf(instance, { image, paths, network, ...settings })
    const capture = { dir: paths.instanceSleep(id, generation), base, isShared: isBaseShared(base, id) }
    hypervisorOf(instance.hypervisor).expectRestore?.(spec, capture)
  }

  /** Resolves when the agent has answered. */
  async restore(id: InstanceId): Promise<Instance> {
    const { workers, room, admitAgain } = this.#uses
    try {
      return await workers.request(id, 'restore', (work) => room.reserving(id, () => restore(work, admitAgain)))
    } catch (error) {
      // It sleeps on, and what the attempt cancelled is still to be done.
      this.attend(id)
      throw error
    }
  }

  /** Why it cannot nap now to give memory back; undefined when it can. */
  obstacle(instance: Instance): string | undefined {
    const { workers } = this.#uses
    if (instance.state !== 'Running') return `it is ${instance.state}`
    if (workers.isBusy(instance.id)) return 'it is in the middle of an operation'
    const admission = workers.admission(instance, 'standby')
    return admission.answer === 'denied' ? admission.reason : undefined
  }

  /** Puts it to sleep and wakes it on a base of its own. */
  async napAndWake(id: InstanceId): Promise<void> {
    const nap = this.#napAndWake(id)
    this.#naps.set(id, nap)
    try {
      await nap
    } finally {
      this.#naps.delete(id)
    }
  }

  /** What it takes of the host is kept for it meanwhile. */
  async #napAndWake(id: InstanceId): Promise<void> {
    const sleepAndWake = async (): Promise<void> => {
      await this.standby(id, { compression: 'off', wakes: true })
      await this.#consolidations.settled(id)
      // What fails here for a moment must not leave it asleep.
      await this.restore(id).catch(() => this.restore(id))
    }
    await this.#uses.room.reserving(id, sleepAndWake, { ...this.#uses.get(id), runs: true })
  }

  /** Begins what is done with a sleeping state in the background. What is compressed at once needs no base of its own first. */
  attend(id: InstanceId, onConsolidated?: () => void): void {
    const sleep = this.#uses.find(id)?.sleep
    if (sleep === undefined) return
    if (sleep.compress === undefined || sleep.compress.atMs > Date.now()) this.#consolidations.begin(id, onConsolidated)
    this.#compressions.begin(id)
  }

  /** Has what it sleeps on compressed, once its row says so. */
  compress(id: InstanceId): void {
    this.#compressions.begin(id)
  }

  /** Resolves when nothing reads or writes its sleeping state in the background any more. */
  async cancelJobs(id: InstanceId): Promise<void> {
    await this.#compressions.cancel(id)
    await this.#consolidations.cancel(id)
  }

  /** Resolves when no sleeping state is being consolidated, or waits for it. */
  consolidated(): Promise<void> {
    return this.#consolidations.settled()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#consolidations[Symbol.asyncDispose]()
  }
}
