/** An answer that is written already. */
export class JsonBytes {
  readonly bytes: Buffer
  /** Of memory that its writer wants back once it is sent. */
  readonly giveBack: (() => void) | undefined

  constructor(bytes: Buffer, giveBack?: () => void) {
    this.bytes = bytes
    this.giveBack = giveBack
  }
}
