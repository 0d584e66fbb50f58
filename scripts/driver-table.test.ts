import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { test } from 'node:test'
import { DRIVERS_PAGE, driversPage } from './driver-table-text.ts'

test('docs/drivers.md says of each driver what the driver says of itself', async () => {
  assert.equal(await readFile(DRIVERS_PAGE, 'utf8'), await driversPage(), 'write it anew with: node scripts/driver-table.ts')
})
