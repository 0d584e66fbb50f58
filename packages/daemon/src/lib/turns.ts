/**
 * How long this thread computes in each turn of its event loop: what others on the machine take does not count. For tests: it looks
 * at every turn, so that the loop never rests.
 */
export class Turns implements Disposable {
  longestMs = 0
  totalMs = 0
  #last = process.threadCpuUsage()
  #next = setImmediate(() => this.#turn())

  #turn(): void {
    const { user, system } = process.threadCpuUsage(this.#last)
    this.#last = process.threadCpuUsage()
    this.longestMs = Math.max(this.longestMs, (user + system) / 1000)
    this.totalMs += (user + system) / 1000
    this.#next = setImmediate(() => this.#turn())
  }

  [Symbol.dispose](): void {
    clearImmediate(this.#next)
  }
}
