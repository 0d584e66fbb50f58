/** An answer that is written already, in memory that its writer wants back once it is sent. */
export class JsonBytes {
  readonly bytes: Buffer
  readonly giveBack: () => void

  constructor(bytes: Buffer, giveBack: () => void) {
    this.bytes = bytes
    this.giveBack = giveBack
  }
}
