/** Writes the table of drivers in docs/drivers.md anew. */
import { writeFile } from 'node:fs/promises'
import { DRIVERS_PAGE, driversPage } from './driver-table-text.ts'

await writeFile(DRIVERS_PAGE, await driversPage())
