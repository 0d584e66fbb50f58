/** For tests: snapshots in memory, that can be damaged, unreadable and in use. */
import { AppError } from '@dormouse/api/errors.ts'
import type { InstanceId } from '../instances/instance.ts'
import type { Step } from '../lib/step.ts'
import type { ScheduledRequest, ScheduledSnapshots } from './scheduled-snapshots.ts'

export interface FakeScheduledSnapshot extends ScheduledRequest {
  readonly id: string
  readonly source: InstanceId
  readonly createdAtMs: number
  /** What verifying it says. */
  verdict: 'whole' | 'damaged' | Error
  isInUse: boolean
}

export class FakeScheduledSnapshots implements ScheduledSnapshots {
  /** In the order of making, oldest first. */
  readonly made: FakeScheduledSnapshot[] = []
  /** Ids, in the order in which they were read. */
  readonly verified: string[] = []
  /** What a create waits for, and fails with; a test sets it. */
  beforeCreate: (request: ScheduledRequest) => Promise<void> = async () => undefined
  /** What reading one waits for. */
  beforeVerify: (signal: AbortSignal) => Promise<void> = async () => undefined
  /** How what is made next turns out. */
  nextVerdict: FakeScheduledSnapshot['verdict'] = 'whole'
  readonly #now: () => number
  #count = 0

  constructor(now: () => number = Date.now) {
    this.#now = now
  }

  async create(source: InstanceId, request: ScheduledRequest): Promise<FakeScheduledSnapshot> {
    await this.beforeCreate(request)
    if (this.made.some((one) => one.source === source && one.name === request.name)) throw new AppError('conflict', 'The name is taken')
    const snapshot = { ...request, id: `s${++this.#count}`, source, createdAtMs: this.#now(), verdict: this.nextVerdict, isInUse: false }
    this.made.push(snapshot)
    return snapshot
  }

  listScheduled(id: InstanceId): readonly FakeScheduledSnapshot[] {
    return this.made.filter(({ source }) => source === id).toReversed()
  }

  async verify(id: string, { signal }: Pick<Step, 'signal'>): Promise<'whole' | 'damaged'> {
    this.verified.push(id)
    await this.beforeVerify(signal)
    const { verdict } = this.#get(id)
    if (verdict instanceof Error) throw verdict
    return verdict
  }

  async delete(id: string): Promise<void> {
    const snapshot = this.#get(id)
    if (snapshot.isInUse) throw new AppError('in_use', `A fork stands on the snapshot ${id}`)
    this.made.splice(this.made.indexOf(snapshot), 1)
  }

  #get(id: string): FakeScheduledSnapshot {
    const found = this.made.find((one) => one.id === id)
    if (found === undefined) throw new AppError('not_found', `There is no snapshot ${id}`)
    return found
  }
}
