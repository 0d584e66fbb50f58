/** For tests: what was done unasked, in words. */
import type { OwnDoing, OwnDoings } from './audit.ts'

export class FakeOwnDoings implements OwnDoings {
  /** `deleteInstance abc done`, in the order in which they ended. */
  readonly told: string[] = []

  async perform<T>(doing: OwnDoing, work: () => Promise<T>, made?: (result: T) => string): Promise<T> {
    try {
      const result = await work()
      this.#tell(doing, `done${made === undefined ? '' : ` ${made(result)}`}`)
      return result
    } catch (error) {
      this.#tell(doing, 'failed')
      throw error
    }
  }

  note(doing: OwnDoing): void {
    this.#tell(doing, 'done')
  }

  #tell({ operation, target, subjectId }: OwnDoing, how: string): void {
    this.told.push(`${operation} ${subjectId ?? Object.values(target).join(' ')} ${how}`)
  }
}
