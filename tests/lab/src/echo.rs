//! The echo service that runs in real guests.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use anyhow::{Context as _, Result};

/// Returns what comes, over TCP and UDP, IPv4 and IPv6, to whom it came from. Ends with an error only.
pub fn serve(port: u16) -> Result<()> {
    let datagrams = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).context("UDP socket")?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("TCP socket")?;
    println!("guest is up");
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            let answered = datagrams
                .recv_from(&mut buffer)
                .and_then(|(length, from)| datagrams.send_to(&buffer[..length], from));
            if let Err(error) = answered {
                eprintln!("echo of a datagram: {error}");
            }
        }
    });
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = echo(stream) {
                eprintln!("echo of a connection: {error}");
            }
        });
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}
